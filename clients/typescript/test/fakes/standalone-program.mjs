/** A program that starts a standalone service and runs until it is killed. */

import { Supervisor } from "embedserve-client/node";

const [, , config, port] = process.argv;
const supervisor = new Supervisor({ config, port: Number(port) });
console.log((await supervisor.start()).pid);
setInterval(() => {}, 1000);
