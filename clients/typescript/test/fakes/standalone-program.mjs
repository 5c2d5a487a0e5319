/** A program that starts a standalone service, and ends as its last argument says. */

import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads";
import { Supervisor } from "embedserve-client/node";

const [, , config, port, end] = isMainThread ? process.argv : workerData;
if (end === "terminate" && isMainThread) {
  const worker = new Worker(new URL(import.meta.url), { workerData: process.argv });
  worker.on("message", (pid) => console.log(pid));
  process.stdin.once("data", async () => {
    await worker.terminate();
    console.log("terminated");
  });
} else {
  const supervisor = new Supervisor({ config, port: Number(port) });
  const { pid } = await supervisor.start();
  if (isMainThread) console.log(pid);
  else parentPort.postMessage(pid);
  if (end === "exit") process.stdin.once("data", () => process.exit(0));
  setInterval(() => {}, 1000);
}
