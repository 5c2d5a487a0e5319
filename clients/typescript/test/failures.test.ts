/** Retries, timeouts, cancellation and errors of the client. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { inspect } from "node:util";
import {
  Client,
  HTTPError,
  NetworkError,
  RateLimitError,
  RequestTimeoutError,
  ServerError,
} from "embedserve-client";
import { embedReply, freePort, send, startService, vectorOf } from "./service.js";

const ERROR_BODY = { error: { message: "no", type: "t", param: "input", code: "c" } };

const LONG_DELAYS = { retryDelayMs: 1e9, maxRetryDelayMs: 1e9 };

async function unreachableUrl(): Promise<string> {
  return `http://127.0.0.1:${await freePort()}`;
}

async function rejectionOf(promise: Promise<unknown>): Promise<unknown> {
  return promise.then(
    () => assert.fail("it resolved"),
    (error: unknown) => error,
  );
}

for (const status of [429, 500, 502, 503, 504]) {
  test(`a ${status} is retried`, async (t) => {
    const { url, requests } = await startService(t, (_, response, n) => {
      if (n > 2) return false;
      return send(response, status, ERROR_BODY);
    });
    const client = new Client({ baseUrl: url, retryDelayMs: 1 });
    assert.deepEqual(await client.embedQuery("x"), vectorOf("x"));
    assert.equal(requests.length, 3);
  });
}

test("after the last retry, the call rejects with the last error", async (t) => {
  const { url, requests } = await startService(t, (_, response, n) =>
    send(response, 503, { error: `no ${n}` }, { "x-request-id": `r${n}` }),
  );
  const error = await rejectionOf(new Client({ baseUrl: url, retryDelayMs: 1 }).embed(["x"]));
  assert.ok(error instanceof ServerError && error instanceof HTTPError);
  assert.deepEqual([error.status, error.message, error.requestId], [503, "no 6", "r6"]);
  assert.equal(error.code, "SERVER_ERROR");
  assert.equal(requests.length, 6);
});

for (const status of [400, 401, 403, 404, 408, 413, 422]) {
  test(`a ${status} is not retried`, async (t) => {
    const { url, requests } = await startService(t, (_, response) =>
      send(response, status, ERROR_BODY),
    );
    const error = await rejectionOf(new Client({ baseUrl: url, retryDelayMs: 1 }).embed(["x"]));
    assert.ok(error instanceof HTTPError);
    const { code, message, serverCode, param } = error;
    assert.deepEqual([error.status, code, message], [status, "HTTP_ERROR", "no"]);
    assert.deepEqual([serverCode, param], ["c", "input"]);
    assert.equal(requests.length, 1);
  });
}

test("the message is that of the response, in the error format of each dialect", async (t) => {
  let body: unknown;
  const { url } = await startService(t, (_, response) => send(response, 400, body));
  const client = new Client({ baseUrl: url });
  const messageOf = async (reply: unknown) => {
    body = reply;
    return ((await rejectionOf(client.info())) as Error).message;
  };
  assert.equal(await messageOf({ error: "one" }), "one");
  assert.equal(await messageOf({ message: "two" }), "two");
  assert.equal(await messageOf({ detail: "three" }), "three");
  assert.equal(await messageOf("<b>four</b>"), "<b>four</b>");
  const withReason = { error: "unhealthy", reason: "no replica" };
  assert.equal(await messageOf(withReason), "unhealthy: no replica");
  assert.match(await messageOf(""), /400/);
  assert.match(await messageOf({ error: { message: 5 } }), /400/);
});

test("an unreachable service is a NetworkError, after all retries", async () => {
  const client = new Client({ baseUrl: await unreachableUrl(), retryDelayMs: 1 });
  const error = await rejectionOf(client.embed(["x"]));
  assert.ok(error instanceof NetworkError);
  assert.equal(error.code, "NETWORK_ERROR");
  assert.match(error.message, /ECONNREFUSED/);
  assert.ok(error.cause);
});

test("a broken connection is retried", async (t) => {
  const { url, requests } = await startService(t, (_, response, n) => {
    if (n === 1) return response.socket?.destroy();
    if (n > 2) return false;
    response.writeHead(200, { "content-length": "100" });
    response.write("{");
    return setTimeout(() => response.socket?.destroy(), 5);
  });
  await new Client({ baseUrl: url, retryDelayMs: 1 }).embed(["x"]);
  assert.equal(requests.length, 3);
});

test("maxRetryDelayMs limits the delays", async (t) => {
  const { url, requests } = await startService(t, (_, response, n) =>
    n > 3 ? false : send(response, 500, ERROR_BODY),
  );
  await new Client({ baseUrl: url, retryDelayMs: 1e6, maxRetryDelayMs: 5 }).embed(["x"]);
  assert.equal(requests.length, 4);
});

for (const status of [429, 503]) {
  test(`a retry waits for Retry-After of a ${status}`, async (t) => {
    const { url } = await startService(t, (_, response, n) => {
      if (n > 1) return false;
      return send(response, status, ERROR_BODY, { "retry-after": "1" });
    });
    const start = performance.now();
    await new Client({ baseUrl: url, retryDelayMs: 1 }).embed(["x"]);
    assert.ok(performance.now() - start >= 990);
  });
}

test("Retry-After of other errors is ignored", async (t) => {
  const { url, requests } = await startService(t, (_, response, n) =>
    n > 1 ? false : send(response, 500, ERROR_BODY, { "retry-after": "3600" }),
  );
  await new Client({ baseUrl: url, retryDelayMs: 1 }).embed(["x"]);
  assert.equal(requests.length, 2);
});

for (const [header, ms] of [
  ["120", 120_000],
  [new Date(Date.now() + 600_000).toUTCString(), 500_000],
] as const) {
  test(`a Retry-After beyond the timeout rejects at once: ${header.slice(0, 3)}`, async (t) => {
    const { url, requests } = await startService(t, (_, response) =>
      send(response, 429, ERROR_BODY, { "retry-after": header }),
    );
    const start = performance.now();
    const error = await rejectionOf(new Client({ baseUrl: url, retryDelayMs: 1 }).embed(["x"]));
    assert.ok(error instanceof RateLimitError && error instanceof HTTPError);
    assert.deepEqual([error.status, error.code], [429, "RATE_LIMITED"]);
    const { retryAfterMs = 0 } = error;
    assert.ok(retryAfterMs >= ms && retryAfterMs <= 600_000);
    assert.equal(requests.length, 1);
    assert.ok(performance.now() - start < 5000);
  });
}

test("the timeout of a request includes its retries", async (t) => {
  const { url, requests } = await startService(t, (_, response, n) => {
    if (n === 1) return send(response, 500, ERROR_BODY);
    return undefined;
  });
  const client = new Client({ baseUrl: url, timeoutMs: 300, retryDelayMs: 1 });
  const error = await rejectionOf(client.embed(["x"]));
  assert.ok(error instanceof RequestTimeoutError);
  assert.equal(error.code, "TIMEOUT");
  assert.ok(error.cause instanceof HTTPError);
  assert.equal(requests.length, 2);
});

test("a delay beyond the timeout rejects at once", async (t) => {
  const { url, requests } = await startService(t, (_, response) => send(response, 500, ERROR_BODY));
  const client = new Client({ baseUrl: url, timeoutMs: 2000, ...LONG_DELAYS });
  const start = performance.now();
  assert.ok((await rejectionOf(client.embed(["x"]))) instanceof HTTPError);
  assert.equal(requests.length, 1);
  assert.ok(performance.now() - start < 1500);
});

test("the timeout includes a slow response body", async (t) => {
  const { url } = await startService(t, (_, response) => {
    response.writeHead(200, { "content-type": "application/json" });
    const timer = setInterval(() => response.write(" "), 10);
    return response.on("close", () => clearInterval(timer));
  });
  const error = await rejectionOf(new Client({ baseUrl: url }).info({ timeoutMs: 200 }));
  assert.ok(error instanceof RequestTimeoutError);
});

test("the timeout holds for a fetch that ignores its signal", async () => {
  const client = new Client({ fetch: () => new Promise(() => {}), timeoutMs: 50 });
  assert.ok((await rejectionOf(client.info())) instanceof RequestTimeoutError);
});

test("each request of a split call has its own timeout", async (t) => {
  const { url } = await startService(t, ({ body }, response) => {
    setTimeout(() => send(response, 200, embedReply(body.input)), 600);
  });
  const client = new Client({ baseUrl: url, timeoutMs: 2000, batchSize: 1, concurrency: 1 });
  assert.equal((await client.embed([..."abcd"])).length, 4);
});

test("an aborted call rejects at once with the reason of the signal", async (t) => {
  let onClose: () => void;
  const closed = new Promise<void>((resolve) => (onClose = resolve));
  const controller = new AbortController();
  const reason = new Error("changed my mind");
  const { url } = await startService(t, (_, response) => {
    response.on("close", onClose);
    controller.abort(reason);
  });
  const client = new Client({ baseUrl: url });
  assert.equal(await rejectionOf(client.embed(["x"], { signal: controller.signal })), reason);
  await closed;
  assert.equal(await rejectionOf(client.embed(["x"], { signal: controller.signal })), reason);
});

test("an abort ends the delay before a retry", async (t) => {
  const controller = new AbortController();
  const { url, requests } = await startService(t, (_, response) => {
    send(response, 503, ERROR_BODY, { "retry-after": "20" });
    setTimeout(() => controller.abort(), 50);
  });
  const start = performance.now();
  const error = await rejectionOf(new Client({ baseUrl: url }).info({ signal: controller.signal }));
  assert.equal(error, controller.signal.reason);
  assert.equal((error as Error).name, "AbortError");
  assert.equal(requests.length, 1);
  assert.ok(performance.now() - start < 10_000);
});

test("many calls with one signal leave no listeners on it", async (t) => {
  const warnings: Error[] = [];
  const onWarning = (warning: Error) => warnings.push(warning);
  process.on("warning", onWarning);
  t.after(() => process.off("warning", onWarning));
  const { url } = await startService(t);
  const { signal } = new AbortController();
  const client = new Client({ baseUrl: url, batchSize: 1, concurrency: 50 });
  for (let i = 0; i < 20; i++) await client.embed(["a", "b"], { signal });
  await client.embed([..."x".repeat(100)], { signal });
  await new Promise((resolve) => setImmediate(resolve));
  assert.deepEqual(warnings, []);
});

test("no error and no representation contains the API key", async (t) => {
  const key = "sk-verysecret";
  let status = 401;
  const { url } = await startService(t, ({ headers }, response) =>
    send(response, status, status < 300 ? `no ${headers["authorization"]}` : {
      error: { message: `Wrong key: ${headers["authorization"]}`, code: key, param: key },
    }),
  );
  const client = new Client({ baseUrl: url, apiKey: key });
  const exposed: unknown[] = [client, JSON.stringify(client), Object.values(client)];
  exposed.push(await rejectionOf(client.embed(["x"])));
  assert.equal((exposed.at(-1) as Error).message, "Wrong key: Bearer ***");
  status = 200;
  exposed.push(await rejectionOf(client.embed(["x"])));
  const unreachable = new Client({
    baseUrl: await unreachableUrl(),
    apiKey: key,
    maxRetries: 0,
  });
  exposed.push(unreachable, await rejectionOf(unreachable.embed(["x"])));
  for (const invalid of [`${key}\n`, `${key}é`, `${key} x`]) {
    try {
      new Client({ apiKey: invalid });
      assert.fail("the key was accepted");
    } catch (error) {
      assert.ok(error instanceof TypeError);
      exposed.push(error);
    }
  }
  for (const value of exposed) {
    const text = inspect(value, { depth: 20, showHidden: true }) + String((value as Error)?.stack);
    assert.ok(!text.includes("verysecret"), text);
  }
});

