/** A program that uses a sidecar and ends in the way that its argument names. */

import { EmbedSidecar } from "embedserve-client/node";

const [, , service, port, way] = process.argv;
const sidecar = new EmbedSidecar({ command: [process.execPath, service], port: Number(port) });
await sidecar.embed(["a"]);
sidecar.on("stopped", () => console.log("stopped"));
console.log(sidecar.getStatus().pid);
if (way === "exit") process.exit(0);
if (way === "throw") setTimeout(() => { throw new Error("uncaught"); });
if (way === "kill") process.kill(process.pid, "SIGKILL");
