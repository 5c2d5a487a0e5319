/** Stands for `embedserve serve`. What it does wrong is told by FAKE, a JSON object. */

import { appendFileSync, readFileSync } from "node:fs";
import { createServer } from "node:http";

const { FAKE = "{}", FAKE_LOG } = process.env;
const told = JSON.parse(FAKE);
const port = Number(process.argv[process.argv.indexOf("--port") + 1]);
const log = (text) => FAKE_LOG && appendFileSync(FAKE_LOG, `${text}\n`);
log(`start ${process.pid} ${process.argv.slice(2).join(" ")}`);

console.log("loading");
console.error("still loading");
process.on("SIGINT", () => {
  log("SIGINT");
  if (!told.stubborn) process.exit(0);
});
process.stdin.resume().on("end", () => {
  log("EOF");
  if (!told.stubborn) process.exit(0);
});
// Fails from its n-th start on.
const starts = FAKE_LOG ? readFileSync(FAKE_LOG, "utf8").split("start ").length - 1 : 1;
if (told.failsFrom && starts >= told.failsFrom) {
  console.error("no such model");
  process.exit(3);
}
const readyAt = Date.now() + (told.slowMs ?? 0);
const server = createServer((request, response) => {
  const send = (status, body) => {
    const headers = { "content-type": "application/json", "x-embedding-space": "f-fp32" };
    response.writeHead(status, headers);
    response.end(JSON.stringify(body));
  };
  if (request.url === "/crash") process.exit(1);
  if (request.url === "/health") {
    // As the real one's proxy says, before the service is there.
    if (told.slowMs && Date.now() < readyAt) return send(404, "Path '/health' not found.");
    if (told.neverReady) return send(503, { status: "unavailable" });
    return send(200, { status: "ok", model: "fake", dim: 2, device: "cpu" });
  }
  let text = "";
  request.on("data", (chunk) => (text += chunk));
  request.on("end", () => {
    const { input } = JSON.parse(text);
    // Once only: the next life answers.
    if (input[0] === "crash" && starts === 1) process.exit(1);
    send(200, {
      data: input.map((one, index) => ({ index, embedding: [one.length, process.pid] })),
      model: "fake",
    });
  });
});
server.on("error", (error) => {
  console.error(error.message);
  process.exit(98);
});
server.listen(port, "127.0.0.1");
