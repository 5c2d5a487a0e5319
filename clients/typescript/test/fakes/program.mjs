/** A program that uses a supervisor and ends as its last argument says. */

import { Supervisor } from "embedserve-client/node";

const [, , service, port, exit] = process.argv;
const supervisor = new Supervisor({
  command: [process.execPath, service, "--port", port],
  port: Number(port),
});
await supervisor.embed(["a"]);
supervisor.on("stopped", () => console.log("stopped"));
console.log(supervisor.status().pid);
if (exit === "exit") process.exit(0);
if (exit === "throw") setTimeout(() => { throw new Error("uncaught"); });
if (exit === "kill") process.kill(process.pid, "SIGKILL");
