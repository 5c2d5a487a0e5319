/**
 * Has a page in a headless Chromium embed, and looks at what came of it.
 *
 * The service is that of EMBEDSERVE_URL, which must allow any origin, else a fake. CHROMIUM is the
 * browser's path. Without a browser it ends with status 77, as of a test that was left out.
 */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";

const CHROMIUM = process.env.CHROMIUM ?? "/usr/bin/chromium";
const PATIENCE_MS = 60_000;
const FLAGS = [
  ...["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"],
  ...["--disable-background-networking", "--disable-component-update", "--disable-sync"],
];
const HERE = new URL(".", import.meta.url);
const HEADERS = { "x-embedding-space": "fake-fp32", "x-truncated-inputs": "0" };
const CORS = {
  "access-control-allow-origin": "*",
  "access-control-allow-headers": "authorization, content-type",
  "access-control-expose-headers": Object.keys(HEADERS).join(","),
};

if (!existsSync(CHROMIUM)) {
  console.log(`There is no browser at ${CHROMIUM}; set CHROMIUM. Nothing was tried.`);
  process.exit(77);
}

async function listening(handle) {
  const server = createServer(async (request, response) => {
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    handle(request, response, Buffer.concat(chunks).toString());
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return [server, `http://127.0.0.1:${server.address().port}`];
}

function answerAsService(request, response, text) {
  const send = (status, body) => {
    const type = { "content-type": "application/json" };
    response.writeHead(status, { ...CORS, ...HEADERS, ...type }).end(JSON.stringify(body));
  };
  if (request.method === "OPTIONS") return send(200, {});
  if (request.url === "/health") return send(200, { status: "ok", model: "fake", dim: 3 });
  const { input } = JSON.parse(text);
  if (input.includes("")) return send(400, { error: { message: "A text is empty." } });
  const embedding = (one) =>
    Buffer.from(Float32Array.of(one.length, 0.1, -1e-30).buffer).toString("base64");
  return send(200, {
    data: input.map((one, index) => ({ index, embedding: embedding(one) })),
    model: "fake",
    usage: { prompt_tokens: 5 * input.length },
  });
}

const real = process.env.EMBEDSERVE_URL;
const [fake, fakeUrl] = await listening(answerAsService);
const [closed, nowhere] = await listening(() => {});
await new Promise((resolve) => closed.close(resolve));

let tell;
const told = new Promise((resolve) => (tell = resolve));
const [pages, pagesUrl] = await listening((request, response, text) => {
  const send = (type, body) => response.writeHead(200, { "content-type": type }).end(body);
  if (request.url === "/") return send("text/html", readFileSync(new URL("page.html", HERE)));
  if (request.url === "/browser.js") {
    return send("text/javascript", readFileSync(new URL("../../dist/browser.js", HERE)));
  }
  if (request.url === "/told") {
    return send("application/json", JSON.stringify({ service: real ?? fakeUrl, nowhere }));
  }
  if (request.url === "/result") tell(JSON.parse(text));
  return send("text/plain", "");
});

const profile = mkdtempSync(join(tmpdir(), "chromium-"));
const browser = spawn(CHROMIUM, [...FLAGS, `--user-data-dir=${profile}`, `${pagesUrl}/`], {
  stdio: ["ignore", "ignore", "pipe"],
});
let complaints = "";
browser.stderr.on("data", (chunk) => (complaints += chunk));
const ended = once(browser, "exit");
let timer;
const late = new Promise((_, reject) => {
  const words = () => reject(new Error(`The page said nothing. The browser:\n${complaints}`));
  timer = setTimeout(words, PATIENCE_MS);
  ended.then(words);
});
try {
  check(await Promise.race([told, late]));
  console.log(`ok: a page in Chromium embedded with ${real ? "the service" : "a fake service"}`);
} finally {
  clearTimeout(timer);
  late.catch(() => {});
  browser.kill("SIGTERM");
  const killer = setTimeout(() => browser.kill("SIGKILL"), 5000);
  await ended;
  clearTimeout(killer);
  for (const server of [fake, pages]) {
    server.closeAllConnections();
    server.close();
  }
  rmSync(profile, { recursive: true, force: true, maxRetries: 5 });
}

function check(result) {
  assert.equal(result.error, undefined);
  assert.equal(result.floats, true);
  assert.equal(result.vectors.length, 3);
  assert.deepEqual(result.vectors[0], result.vectors[2]);
  assert.equal(result.health, "ok");
  assert.deepEqual(result.refused.slice(0, 2), [true, 400]);
  assert.match(result.refused[2], /empty/i);
  assert.deepEqual(result.nobody, [true, "NETWORK_ERROR"]);
  assert.equal(result.aborted, "why");
  // The headers can be read from another origin.
  assert.match(result.space, /-/);
  if (real) return;
  const { fround } = Math;
  assert.deepEqual(result.vectors[1], [15, fround(0.1), fround(-1e-30)]);
  assert.deepEqual([result.space, result.model, result.tokens], ["fake-fp32", "fake", 15]);
  assert.deepEqual(result.truncated, [0, 2]);
}
