/** A worker thread that starts processes, and posts what becomes of them. */

import { once } from "node:events";
import { parentPort, workerData } from "node:worker_threads";
import { StdioWorker, Supervisor } from "embedserve-client/node";

const { service, worker, port } = workerData;
const post = (name, value) => parentPort.postMessage([name, value]);
// A ready service doesn't keep the thread alive.
const keepAlive = setInterval(() => {}, 1000);

const supervisor = new Supervisor({
  command: [process.execPath, service, "--port", String(port)],
  port,
  restartDelayMs: 20,
});
const [vector] = await supervisor.embed(["abc"]);
post("service", [vector[0], vector[1] === supervisor.status().pid]);
const crashed = once(supervisor, "crashed");
const restarted = once(supervisor, "ready");
await fetch(`${supervisor.url}/crash`).catch(() => {});
post("crashed", (await crashed)[0]);
await restarted;
const killed = once(supervisor, "crashed");
const ready = once(supervisor, "ready");
process.kill(supervisor.status().pid, "SIGKILL");
post("killed", (await killed)[0]);
await ready;
await supervisor.stop();
post("stopped", supervisor.status().pid);

const absent = new Supervisor({ command: ["/no/such/program"], port });
post("absent", await absent.start().catch(({ message }) => message));
const stdio = new StdioWorker({ command: [process.execPath, worker] });
post("worker", (await stdio.encodeBatch(["ab", "c"])).map(([length]) => length));
await stdio.stop();
const stubborn = new StdioWorker({
  command: [process.execPath, worker],
  env: { ...process.env, FAULTS: '{"ignoresStop": true}' },
  stopTimeoutMs: 10,
});
await stubborn.start();
await stubborn.stop();
post("stubborn", stubborn.status().state);
clearInterval(keepAlive);
