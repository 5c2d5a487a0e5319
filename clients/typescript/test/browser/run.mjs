/**
 * Embeds in a page in headless Chromium and checks the result.
 *
 * The page uses the service at EMBEDSERVE_URL, which must allow any origin, or a fake service.
 * CHROMIUM is the path of the browser. Without a browser, the exit status is 77 (skipped).
 */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";

const CHROMIUM = process.env.CHROMIUM ?? "/usr/bin/chromium";
const TIMEOUT_MS = 60_000;
const FLAGS = [
  ...["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"],
  ...["--disable-background-networking", "--disable-component-update", "--disable-sync"],
];
const PAGE = new URL("page.html", import.meta.url);
const PACKAGE = new URL("../../", import.meta.url);
const HEADERS = {
  "x-embedding-space": "fake-fp32",
  "x-truncated-inputs": "0",
  "x-cache": "hits=1; misses=1; tier=l1",
  "x-cost-usd": "0.000000020",
};
const CORS = {
  "access-control-allow-origin": "*",
  "access-control-allow-headers": "authorization, content-type, x-priority",
  "access-control-expose-headers": Object.keys(HEADERS).join(","),
};

if (!existsSync(CHROMIUM)) {
  console.log(`Skipped: there is no browser at ${CHROMIUM}. Set CHROMIUM to its path.`);
  process.exit(77);
}

async function startServer(handle) {
  const server = createServer(async (request, response) => {
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    handle(request, response, Buffer.concat(chunks).toString());
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return [server, `http://127.0.0.1:${server.address().port}`];
}

function handleAsService(request, response, text) {
  const send = (status, body) => {
    const type = { "content-type": "application/json" };
    response.writeHead(status, { ...CORS, ...HEADERS, ...type }).end(JSON.stringify(body));
  };
  if (request.method === "OPTIONS") return send(200, {});
  if (request.url === "/health") return send(200, { status: "ok", model: "fake", dim: 3 });
  const { input } = JSON.parse(text);
  if (input.includes("")) return send(400, { error: { message: "A text is empty." } });
  const encode = (text) =>
    Buffer.from(Float32Array.of(text.length, 0.1, -1e-30).buffer).toString("base64");
  return send(200, {
    data: input.map((text, index) => ({ index, embedding: encode(text) })),
    model: "fake",
    usage: { prompt_tokens: 5 * input.length },
  });
}

const realUrl = process.env.EMBEDSERVE_URL;
const [fake, fakeUrl] = await startServer(handleAsService);
const [closed, unreachableUrl] = await startServer(() => {});
await new Promise((resolve) => closed.close(resolve));

let onResult;
const received = new Promise((resolve) => (onResult = resolve));
const [pageServer, pageUrl] = await startServer((request, response, text) => {
  const send = (type, body) => response.writeHead(200, { "content-type": type }).end(body);
  if (request.url === "/") return send("text/html", readFileSync(PAGE));
  if (/^\/dist\/[\w-]+\.js$/.test(request.url)) {
    return send("text/javascript", readFileSync(new URL(`.${request.url}`, PACKAGE)));
  }
  if (request.url === "/config") {
    const config = { serviceUrl: realUrl ?? fakeUrl, unreachableUrl };
    return send("application/json", JSON.stringify(config));
  }
  if (request.url === "/result") onResult(JSON.parse(text));
  return send("text/plain", "");
});

const profile = mkdtempSync(join(tmpdir(), "chromium-"));
const browser = spawn(CHROMIUM, [...FLAGS, `--user-data-dir=${profile}`, `${pageUrl}/`], {
  stdio: ["ignore", "ignore", "pipe"],
});
let log = "";
browser.stderr.on("data", (chunk) => (log += chunk));
const exited = once(browser, "exit");
let timer;
const failed = new Promise((_, reject) => {
  const fail = () => reject(new Error(`The page sent no result. Output of the browser:\n${log}`));
  timer = setTimeout(fail, TIMEOUT_MS);
  exited.then(fail);
});
try {
  check(await Promise.race([received, failed]));
  console.log(`ok: a page in Chromium used ${realUrl ? "the service" : "a fake service"}`);
} finally {
  clearTimeout(timer);
  failed.catch(() => {});
  browser.kill("SIGTERM");
  const killTimer = setTimeout(() => browser.kill("SIGKILL"), 5000);
  await exited;
  clearTimeout(killTimer);
  for (const server of [fake, pageServer]) {
    server.closeAllConnections();
    server.close();
  }
  await removeProfile();
}

/** Removes the profile, in which the browser's helper processes may write after it has exited. */
async function removeProfile() {
  for (let retries = 100; ; retries--) {
    try {
      return rmSync(profile, { recursive: true, force: true });
    } catch (error) {
      if (!retries) throw error;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }
}

function check(result) {
  assert.equal(result.error, undefined);
  assert.equal(result.areFloat32, true);
  assert.equal(result.vectors.length, 3);
  assert.deepEqual(result.vectors[0], result.vectors[2]);
  assert.equal(result.health, "ok");
  assert.deepEqual(result.invalid.slice(0, 2), [true, 400]);
  assert.match(result.invalid[2], /empty/i);
  assert.deepEqual(result.unreachable, [true, "NETWORK_ERROR"]);
  assert.equal(result.aborted, "reason");
  // CORS exposes the headers to the page.
  assert.match(result.info.space, /-/);
  if (realUrl) return;
  const { fround } = Math;
  assert.deepEqual(result.vectors[1], [15, fround(0.1), fround(-1e-30)]);
  const { space, model, tokens, truncated, cached, costUsd } = result.info;
  assert.deepEqual([space, model, tokens], ["fake-fp32", "fake", 15]);
  assert.deepEqual(truncated, [0, 2]);
  assert.deepEqual([cached, costUsd], [2, 0.00000004]);
}
