/** A fake of `embedserve serve`. FAULTS, a JSON object, selects its faults. */

import { appendFileSync, readFileSync } from "node:fs";
import { createServer } from "node:http";

const { FAULTS = "{}", FAKE_LOG } = process.env;
const faults = JSON.parse(FAULTS);
const port = Number(process.argv[process.argv.indexOf("--port") + 1]);
const log = (text) => FAKE_LOG && appendFileSync(FAKE_LOG, `${text}\n`);
log(`start ${process.pid} ${process.argv.slice(2).join(" ")}`);

console.log("loading");
console.error("still loading");
process.on("SIGINT", () => {
  log("SIGINT");
  if (!faults.ignoresStop) process.exit(0);
});
process.stdin.resume().on("end", () => {
  log("EOF");
  if (!faults.ignoresStop) process.exit(0);
});
// The n-th start and all later ones fail.
const starts = FAKE_LOG ? readFileSync(FAKE_LOG, "utf8").split("start ").length - 1 : 1;
if (faults.failsFrom && starts >= faults.failsFrom) {
  console.error("no such model");
  process.exit(3);
}
const readyAt = Date.now() + (faults.slowMs ?? 0);
const server = createServer((request, response) => {
  const send = (status, body) => {
    const headers = { "content-type": "application/json", "x-embedding-space": "f-fp32" };
    response.writeHead(status, headers);
    response.end(JSON.stringify(body));
  };
  if (request.url === "/crash") process.exit(1);
  if (request.url === "/health") {
    // Like the HTTP proxy of Ray Serve before the service is deployed.
    if (faults.slowMs && Date.now() < readyAt) return send(404, "Path '/health' not found.");
    const isUnhealthy = faults.unhealthyAfterMs && Date.now() > readyAt + faults.unhealthyAfterMs;
    if (faults.neverReady || isUnhealthy) return send(503, { status: "unavailable" });
    return send(200, { status: "ok", model: "fake", dim: 2, device: "cpu" });
  }
  let body = "";
  request.on("data", (chunk) => (body += chunk));
  request.on("end", () => {
    const { input } = JSON.parse(body);
    if (input[0] === "crash" && (starts === 1 || faults.alwaysCrashes)) process.exit(1);
    send(200, {
      data: input.map((text, index) => ({ index, embedding: [text.length, process.pid] })),
      model: "fake",
    });
  });
});
server.on("error", (error) => {
  console.error(error.message);
  process.exit(98);
});
server.listen(port, "127.0.0.1", () => {
  if (faults.closesAfterMs) setTimeout(() => server.close(), faults.closesAfterMs);
});
