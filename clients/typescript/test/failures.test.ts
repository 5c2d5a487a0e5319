/** What the client does when the service, the network or the caller doesn't play along. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { inspect } from "node:util";
import {
  EmbedClient,
  HttpError,
  NetworkError,
  OverloadedError,
  TimeoutError,
} from "embedserve-client";
import { freePort, send, service, vectorOf } from "./service.js";

const told = { error: { message: "no", type: "t", param: "input", code: "c" } };

async function thrown(promise: Promise<unknown>): Promise<unknown> {
  return promise.then(
    () => assert.fail("it worked"),
    (error: unknown) => error,
  );
}

for (const status of [429, 500, 502, 503, 504]) {
  test(`a ${status} is tried again`, async (t) => {
    const { url, asked } = await service(t, (_, response, n) => {
      if (n > 2) return false;
      return send(response, status, told);
    });
    const client = new EmbedClient({ baseUrl: url, retryDelay: 1 });
    assert.deepEqual(await client.embedQuery("x"), vectorOf("x"));
    assert.equal(asked.length, 3);
  });
}

test("tries end, with the last error", async (t) => {
  const { url, asked } = await service(t, (_, response, n) =>
    send(response, 503, { error: `no ${n}` }, { "x-request-id": `r${n}` }),
  );
  const error = await thrown(new EmbedClient({ baseUrl: url, retryDelay: 1 }).embed(["x"]));
  assert.ok(error instanceof HttpError && !(error instanceof OverloadedError));
  assert.deepEqual([error.status, error.message, error.requestId], [503, "no 3", "r3"]);
  assert.equal(asked.length, 3);
});

for (const status of [400, 401, 403, 404, 408, 413, 422]) {
  test(`a ${status} is not tried again`, async (t) => {
    const { url, asked } = await service(t, (_, response) => send(response, status, told));
    const error = await thrown(new EmbedClient({ baseUrl: url, retryDelay: 1 }).embed(["x"]));
    assert.ok(error instanceof HttpError);
    const { code, message, serverCode, param } = error;
    assert.deepEqual([error.status, code, message], [status, "HTTP_ERROR", "no"]);
    assert.deepEqual([serverCode, param], ["c", "input"]);
    assert.equal(asked.length, 1);
  });
}

test("the service's own words are found in each dialect's error", async (t) => {
  let body: unknown;
  const { url } = await service(t, (_, response) => send(response, 400, body));
  const client = new EmbedClient({ baseUrl: url });
  const say = async (one: unknown) => {
    body = one;
    return ((await thrown(client.info())) as Error).message;
  };
  assert.equal(await say({ error: "one" }), "one");
  assert.equal(await say({ message: "two" }), "two");
  assert.equal(await say({ detail: "three" }), "three");
  assert.equal(await say("<b>four</b>"), "<b>four</b>");
  assert.equal(await say({ error: "unhealthy", reason: "no replica" }), "unhealthy: no replica");
  assert.match(await say(""), /400/);
  assert.match(await say({ error: { message: 5 } }), /400/);
});

test("nobody there is a NetworkError, after all tries", async () => {
  const client = new EmbedClient({ port: await freePort(), retryDelay: 1 });
  const error = await thrown(client.embed(["x"]));
  assert.ok(error instanceof NetworkError);
  assert.equal(error.code, "NETWORK_ERROR");
  assert.match(error.message, /ECONNREFUSED/);
  assert.ok(error.cause);
});

test("a connection that breaks is tried again", async (t) => {
  const { url, asked } = await service(t, (_, response, n) => {
    if (n === 1) return response.socket?.destroy();
    if (n > 2) return false;
    response.writeHead(200, { "content-length": "100" });
    response.write("{");
    return setTimeout(() => response.socket?.destroy(), 5);
  });
  await new EmbedClient({ baseUrl: url, retryDelay: 1 }).embed(["x"]);
  assert.equal(asked.length, 3);
});

test("Retry-After is waited for", async (t) => {
  const { url } = await service(t, (_, response, n) => {
    if (n > 1) return false;
    return send(response, 429, told, { "retry-after": "1" });
  });
  const start = performance.now();
  await new EmbedClient({ baseUrl: url, retryDelay: 1 }).embed(["x"]);
  assert.ok(performance.now() - start >= 990);
});

for (const [header, ms] of [
  ["120", 120_000],
  [new Date(Date.now() + 600_000).toUTCString(), 500_000],
] as const) {
  test(`a Retry-After past the deadline isn't: ${header.slice(0, 3)}`, async (t) => {
    const { url, asked } = await service(t, (_, response) =>
      send(response, 429, told, { "retry-after": header }),
    );
    const start = performance.now();
    const error = await thrown(new EmbedClient({ baseUrl: url, retryDelay: 1 }).embed(["x"]));
    assert.ok(error instanceof OverloadedError && error instanceof HttpError);
    assert.deepEqual([error.status, error.code], [429, "OVERLOADED"]);
    const { retryAfterMs = 0 } = error;
    assert.ok(retryAfterMs >= ms && retryAfterMs <= 600_000);
    assert.equal(asked.length, 1);
    assert.ok(performance.now() - start < 5000);
  });
}

test("the deadline holds for the whole call", async (t) => {
  const { url, asked } = await service(t, (_, response, n) => {
    if (n === 1) return send(response, 500, told);
    return undefined;
  });
  const client = new EmbedClient({ baseUrl: url, timeout: 300, retryDelay: 1, retryAttempts: 9 });
  const error = await thrown(client.embed(["x"]));
  assert.ok(error instanceof TimeoutError);
  assert.equal(error.code, "TIMEOUT");
  assert.ok(error.cause instanceof HttpError);
  assert.equal(asked.length, 2);
});

test("a wait that would end after the deadline isn't begun", async (t) => {
  const { url, asked } = await service(t, (_, response) => send(response, 500, told));
  const client = new EmbedClient({ baseUrl: url, timeout: 2000, retryDelay: 1e9 });
  const start = performance.now();
  assert.ok((await thrown(client.embed(["x"]))) instanceof HttpError);
  assert.equal(asked.length, 1);
  assert.ok(performance.now() - start < 1500);
});

test("a body that drips doesn't outlast the deadline", async (t) => {
  const { url } = await service(t, (_, response) => {
    response.writeHead(200, { "content-type": "application/json" });
    const timer = setInterval(() => response.write(" "), 10);
    return response.on("close", () => clearInterval(timer));
  });
  const error = await thrown(new EmbedClient({ baseUrl: url }).info({ timeout: 200 }));
  assert.ok(error instanceof TimeoutError);
});

test("a fetch that heeds no signal doesn't outlast the deadline", async () => {
  const client = new EmbedClient({ fetch: () => new Promise(() => {}), timeout: 50 });
  assert.ok((await thrown(client.info())) instanceof TimeoutError);
});

test("abort ends a request at once, with its reason", async (t) => {
  let left: () => void;
  const hasLeft = new Promise<void>((resolve) => (left = resolve));
  const aborter = new AbortController();
  const reason = new Error("changed my mind");
  const { url } = await service(t, (_, response) => {
    response.on("close", left);
    aborter.abort(reason);
  });
  const client = new EmbedClient({ baseUrl: url });
  assert.equal(await thrown(client.embed(["x"], { signal: aborter.signal })), reason);
  await hasLeft;
  assert.equal(await thrown(client.embed(["x"], { signal: aborter.signal })), reason);
});

test("abort ends a wait between tries", async (t) => {
  const aborter = new AbortController();
  const { url, asked } = await service(t, (_, response) => {
    send(response, 503, told, { "retry-after": "20" });
    setTimeout(() => aborter.abort(), 50);
  });
  const start = performance.now();
  const error = await thrown(new EmbedClient({ baseUrl: url }).info({ signal: aborter.signal }));
  assert.equal(error, aborter.signal.reason);
  assert.equal((error as Error).name, "AbortError");
  assert.equal(asked.length, 1);
  assert.ok(performance.now() - start < 10_000);
});

test("many calls with one signal leave nothing behind on it", async (t) => {
  const warnings: Error[] = [];
  const onWarning = (warning: Error) => warnings.push(warning);
  process.on("warning", onWarning);
  t.after(() => process.off("warning", onWarning));
  const { url } = await service(t);
  const { signal } = new AbortController();
  const client = new EmbedClient({ baseUrl: url, batchSize: 1, concurrency: 50 });
  for (let i = 0; i < 20; i++) await client.embed(["a", "b"], { signal });
  await client.embed([..."x".repeat(100)], { signal });
  await new Promise((resolve) => setImmediate(resolve));
  assert.deepEqual(warnings, []);
});

test("a key is never shown", async (t) => {
  const key = "sk-verysecret";
  let status = 401;
  const { url } = await service(t, ({ headers }, response) =>
    send(response, status, status < 300 ? `no ${headers["authorization"]}` : {
      error: { message: `Wrong key: ${headers["authorization"]}`, code: key, param: key },
    }),
  );
  const client = new EmbedClient({ baseUrl: url, apiKey: key });
  const shown: unknown[] = [client, JSON.stringify(client), Object.values(client)];
  shown.push(await thrown(client.embed(["x"])));
  assert.equal((shown.at(-1) as Error).message, "Wrong key: Bearer ***");
  status = 200;
  shown.push(await thrown(client.embed(["x"])));
  const nowhere = new EmbedClient({ port: await freePort(), apiKey: key, retryAttempts: 0 });
  shown.push(nowhere, await thrown(nowhere.embed(["x"])));
  for (const wrong of [`${key}\n`, `${key}é`, `${key} x`]) {
    try {
      new EmbedClient({ apiKey: wrong });
      assert.fail("it was taken");
    } catch (error) {
      assert.ok(error instanceof TypeError);
      shown.push(error);
    }
  }
  for (const one of shown) {
    const text = inspect(one, { depth: 20, showHidden: true }) + String((one as Error)?.stack);
    assert.ok(!text.includes("verysecret"), text);
  }
});

