/** The requests of the client, and the parsing of the responses. */

import assert from "node:assert/strict";
import { test } from "node:test";
import {
  Client,
  type ClientOptions,
  EmbedError,
  HTTPError,
  InvalidURLError,
  ParseError,
  ServerError,
  SpaceConflictError,
  SpaceMismatchError,
} from "embedserve-client";
import { embedReply, encodeBase64, SPACE, send, startService, vectorOf } from "./service.js";

const TEXTS = ["one", "two", "Grüße, 世界 🌍", "one"];

test("texts are embedded in order", async (t) => {
  const { url, requests } = await startService(t);
  const client = new Client({ baseUrl: url });
  const vectors = await client.embed(TEXTS);
  assert.ok(Array.isArray(vectors));
  assert.deepEqual([...vectors], TEXTS.map(vectorOf));
  assert.ok(vectors[0] instanceof Float32Array);
  assert.equal(vectors.space, SPACE);
  assert.equal(vectors.info.model, "fake");
  assert.equal(vectors.info.tokens, 8);
  assert.deepEqual(vectors.info.truncated, []);
  assert.equal(client.space, SPACE);
  assert.deepEqual(requests[0]?.body, { input: TEXTS, encoding_format: "base64" });
  assert.equal(requests[0]?.headers["content-type"], "application/json");
  assert.equal(requests[0]?.headers["authorization"], undefined);
});

test("options are sent with the field names of the service", async (t) => {
  const { url, requests } = await startService(t);
  const client = new Client({ baseUrl: url, model: "custom", apiKey: "sk-1" });
  await client.embed(["a"], { inputType: "code", dimensions: 2, normalize: false });
  await client.embed(["a"], { model: "other" });
  await client.embed(["a"], { normalize: true, truncation: "start", lane: "bulk" });
  await client.embed(["a"], { truncation: "chunk", useCache: false });
  await client.embed(["a"], { truncation: "error", useCache: true });
  await client.embedDocuments(["a"]);
  assert.deepEqual(await client.embedQuery("q"), vectorOf("q"));
  const expected = (input: string[], fields: object) => ({
    input,
    encoding_format: "base64",
    ...fields,
  });
  assert.deepEqual(
    requests.map(({ body }) => body),
    [
      expected(["a"], { model: "custom", input_type: "code", dimensions: 2, normalized: false }),
      expected(["a"], { model: "other" }),
      expected(["a"], { model: "custom", normalized: true, truncate: "START" }),
      expected(["a"], { model: "custom", chunk: true, use_cache: false }),
      expected(["a"], { model: "custom", truncate: "NONE" }),
      expected(["a"], { model: "custom", input_type: "document" }),
      expected(["q"], { model: "custom", input_type: "query" }),
    ],
  );
  assert.equal(requests[0]?.headers["authorization"], "Bearer sk-1");
});

test("health, info and models", async (t) => {
  const { url, requests } = await startService(t);
  const client = new Client({ baseUrl: url });
  const { status, model, dim, device } = await client.health();
  assert.deepEqual([status, model, dim, device], ["ok", "fake", 4, "cpu"]);
  assert.equal((await client.info()).space, SPACE);
  assert.deepEqual(await client.models(), ["fake", "alias"]);
  assert.deepEqual(requests.map(({ path }) => path), ["/health", "/info", "/v1/models"]);
});

test("an unavailable service has a health, too", async (t) => {
  const body = { status: "unavailable", model: "fake", dim: 4, device: null };
  let reply: unknown = body;
  const { url, requests } = await startService(t, (_, response) => send(response, 503, reply));
  const client = new Client({ baseUrl: url });
  assert.deepEqual(await client.health(), body);
  assert.equal(await client.isHealthy(), false);
  // The HTTP proxy of a service that is starting.
  reply = "No route";
  await assert.rejects(client.health(), ServerError);
  assert.equal(requests.length, 3);
});

test("isHealthy", async (t) => {
  const { url } = await startService(t);
  assert.equal(await new Client({ baseUrl: url }).isHealthy(), true);
  assert.equal(await new Client({ baseUrl: "http://127.0.0.1:9" }).isHealthy(), false);
});

test("a single text has a single vector", async (t) => {
  const { url, requests } = await startService(t);
  assert.deepEqual(await new Client({ baseUrl: url }).embed("a"), vectorOf("a"));
  assert.deepEqual(requests[0]?.body.input, ["a"]);
});

test("requests of a split call have bulk priority unless the lane is set", async (t) => {
  const { url, requests } = await startService(t);
  const client = new Client({ baseUrl: url, batchSize: 1, concurrency: 1 });
  await client.embed(["a"]);
  await client.embed(["a", "b"]);
  await client.embed(["a", "b"], { lane: "interactive" });
  assert.deepEqual(
    requests.map(({ headers }) => headers["x-priority"]),
    [undefined, "bulk", "bulk", "interactive", "interactive"],
  );
});

test("health, info and models of another service are a ParseError", async (t) => {
  const { url } = await startService(t, (_, response) => send(response, 200, { status: 1 }));
  const client = new Client({ baseUrl: url });
  await assert.rejects(client.health(), ParseError);
  await assert.rejects(client.info(), ParseError);
  await assert.rejects(client.models(), ParseError);
});

test("a long list is split into concurrent batches, with the vectors in order", async (t) => {
  const texts = Array.from({ length: 95 }, (_, i) => `text ${i % 50}`);
  const { url, requests, maxInFlight } = await startService(t, ({ body }, response) => {
    // Earlier batches take longer.
    const wait = body.input.includes("text 0") ? 60 : 5;
    setTimeout(() => {
      const headers = { "x-embedding-space": SPACE, "x-truncated-inputs": "0,2-3" };
      send(response, 200, embedReply(body.input), body.input.includes("text 20") ? headers : {
        "x-embedding-space": SPACE,
      });
    }, wait);
  });
  const vectors = await new Client({ baseUrl: url, batchSize: 10, concurrency: 3 }).embed(texts);
  assert.deepEqual([...vectors], texts.map(vectorOf));
  assert.equal(requests.length, 10);
  assert.equal(maxInFlight(), 3);
  assert.equal(vectors.info.tokens, 190);
  assert.deepEqual(vectors.info.truncated, [20, 22, 23, 70, 72, 73]);
});

test("info counts the cached texts and what the call cost", async (t) => {
  const replies: Record<string, string>[] = [];
  const { url } = await startService(t, ({ body }, response) => {
    send(response, 200, embedReply(body.input), {
      "x-embedding-space": SPACE,
      ...replies.shift(),
    });
  });
  const client = new Client({ baseUrl: url, batchSize: 2, concurrency: 1 });
  const embed = async (...headers: Record<string, string>[]) => {
    replies.push(...headers);
    const { cached, costUsd } = (await client.embed(["a", "b", "c"])).info;
    return [cached, costUsd];
  };
  const hits = { "x-cache": "hits=2; misses=0; tier=l1,l2", "x-cost-usd": "0.100000000" };
  const misses = { "x-cache": "hits=0; misses=1", "x-cost-usd": "0.200000020" };
  assert.deepEqual(await embed(hits, misses), [2, 0.30000002]);
  // The model has no price, and another service answers the rest.
  assert.deepEqual(await embed({ "x-cache": "hits=1; misses=1; tier=l1" }, {}), [undefined, undefined]);
  assert.deepEqual(await embed({ "x-cost-usd": "free" }, { "x-cost-usd": "nan" }), [undefined, undefined]);
  const { cached, costUsd } = (await client.embed([])).info;
  assert.deepEqual([cached, costUsd], [0, undefined]);
});

test("the first error aborts the other requests", async (t) => {
  let closed = 0;
  const { url, requests } = await startService(t, ({ body }, response) => {
    if (body.input[0] === "3") return send(response, 400, { error: { message: "no" } });
    return response.on("close", () => closed++);
  });
  const client = new Client({ baseUrl: url, batchSize: 1, concurrency: 4 });
  const start = performance.now();
  await assert.rejects(client.embed([..."0123456789"]), { status: 400, message: "no" });
  // Much less than the timeout of each request.
  assert.ok(performance.now() - start < 10_000);
  await new Promise((resolve) => setTimeout(resolve, 50));
  assert.equal(requests.length, 4);
  assert.equal(closed, 3);
});

test("no texts need no request", async () => {
  const client = new Client({ fetch: () => assert.fail("a request was sent") });
  assert.equal((await client.embed([])).length, 0);
});

test("texts that aren't strings are a TypeError", async () => {
  const client = new Client({ fetch: () => assert.fail("a request was sent") });
  for (const invalid of [[1], undefined, { length: 1 }]) {
    await assert.rejects(client.embed(invalid as never), TypeError);
  }
});

test("vectors are ordered by their index, also if they are decimal numbers", async (t) => {
  const { url } = await startService(t, ({ body }, response) => {
    const { data, ...rest } = embedReply(body.input, (vector) => [...vector]);
    send(response, 200, { ...rest, data: data.reverse() });
  });
  const vectors = await new Client({ baseUrl: url }).embed(TEXTS);
  assert.deepEqual([...vectors], TEXTS.map(vectorOf));
  // Without the header of the space, CORS may hide the other header as well.
  assert.equal(vectors.space, undefined);
  assert.equal(vectors.info.truncated, undefined);
});

const VALID = encodeBase64(vectorOf("x"));
const item = (index: unknown, embedding: unknown = VALID) => ({ index, embedding });
const INVALID_REPLIES: Record<string, unknown> = {
  "not JSON": "<html>",
  "truncated": '{"data": [',
  "empty": "",
  "null": "null",
  "no data": { vectors: [] },
  "too few": { data: [item(0)] },
  "too many": { data: [item(0), item(1), item(1)] },
  "duplicate index": { data: [item(0), item(0)] },
  "index out of range": { data: [item(0), item(2)] },
  "no index": { data: [item(0), item(undefined)] },
  "fractional index": { data: [item(0), item(0.5)] },
  "different lengths": { data: [item(0), item(1, encodeBase64(Float32Array.of(1)))] },
  "empty vectors": { data: [item(0, ""), item(1, "")] },
  "not base64": { data: [item(0), item(1, `${VALID.slice(0, -4)}!!!!`)] },
  "incomplete float": { data: [item(0), item(1, VALID.slice(0, 8))] },
  "not finite": { data: [item(0), item(1, encodeBase64(Float32Array.of(1, NaN, 0, 0)))] },
  "numbers as strings": { data: [item(0), item(1, ["1", "2", "3", "4"])] },
  "no vector": { data: [item(0), item(1, null)] },
};
for (const [name, body] of Object.entries(INVALID_REPLIES)) {
  test(`an invalid response is a ParseError: ${name}`, async (t) => {
    const { url, requests } = await startService(t, (_, response) => send(response, 200, body));
    const client = new Client({ baseUrl: url });
    await assert.rejects(client.embed(["x", "y"]), (error) => {
      assert.ok(error instanceof ParseError && error instanceof EmbedError);
      assert.equal(error.code, "PARSE_ERROR");
      assert.equal(error.name, "ParseError");
      return true;
    });
    assert.equal(requests.length, 1);
  });
}

test("vectors of an incomparable space are rejected", async (t) => {
  let space: string | undefined;
  const { url } = await startService(t, ({ body }, response) =>
    send(response, 200, embedReply(body.input), space ? { "x-embedding-space": space } : {}),
  );
  const client = new Client({ baseUrl: url, maxRetries: 3, retryDelayMs: 1 });
  const lenient = new Client({ baseUrl: url, allowMixedSpaces: true });
  const embedIn = async (name: string | undefined) => {
    space = name;
    await lenient.embed(["a"]);
    await client.embed(["a"]);
  };
  await embedIn("fam-ily-fp32");
  for (const comparable of ["fam-ily-bf16", "fam-ily-fp16", "fam-ily-bf16+float16", undefined]) {
    await embedIn(comparable);
  }
  assert.equal(client.space, "fam-ily-fp32");
  for (const incomparable of [
    "fam-other-fp32",
    "fam-fp32",
    "fam-ily-int8",
    "fam-ily-int8+fp32",
    "fam-ily-fp32+int8.1a2b",
  ]) {
    await assert.rejects(embedIn(incomparable), (error) => {
      assert.ok(error instanceof SpaceMismatchError);
      assert.deepEqual([error.expected, error.received], ["fam-ily-fp32", incomparable]);
      assert.equal(error.code, "SPACE_MISMATCH");
      return true;
    });
  }
  const strict = new Client({ baseUrl: url, expectedSpace: "first-fp32" });
  space = "first-bf16";
  await strict.embed(["a"]);
  space = "second-fp32";
  await assert.rejects(strict.embed(["a"]), SpaceMismatchError);
});

test("a change of the space during a call is detected", async (t) => {
  const { url } = await startService(t, ({ body }, response, n) =>
    send(response, 200, embedReply(body.input), {
      "x-embedding-space": n < 3 ? "a-fp32" : "b-fp32",
    }),
  );
  const client = new Client({ baseUrl: url, batchSize: 1 });
  await assert.rejects(client.embed(["1", "2", "3"]), SpaceMismatchError);
});

test("a pinned space is sent, and its conflict has a class", async (t) => {
  const replies = ["ok", "embedding_space_conflict", "other"];
  const { url, requests } = await startService(t, ({ body }, response, n) => {
    const code = replies[n - 1] ?? "ok";
    if (code === "ok") send(response, 200, embedReply(body.input), { "x-embedding-space": SPACE });
    else send(response, 409, { error: { message: "Another space.", code, type: "t" } });
  });
  const client = new Client({ baseUrl: url, expectedSpace: SPACE, maxRetries: 3, retryDelayMs: 1 });
  await client.embed(["a"]);
  await assert.rejects(client.embed(["a"]), (error) => {
    assert.ok(error instanceof SpaceConflictError && error instanceof HTTPError);
    assert.deepEqual([error.name, error.code], ["SpaceConflictError", "SPACE_CONFLICT"]);
    assert.deepEqual([error.status, error.message], [409, "Another space."]);
    return true;
  });
  await assert.rejects(client.embed(["a"]), (error) => {
    assert.ok(error instanceof HTTPError && !(error instanceof SpaceConflictError));
    return true;
  });
  const mixed = new Client({ baseUrl: url, expectedSpace: SPACE, allowMixedSpaces: true });
  await mixed.embed(["a"]);
  await new Client({ baseUrl: url }).embed(["a"]);
  assert.deepEqual(
    requests.map(({ headers }) => headers["x-embedding-space"]),
    [SPACE, SPACE, SPACE, undefined, undefined],
  );
});

test("the URL of the service", () => {
  const urlOf = (baseUrl?: string) => new Client({ baseUrl }).baseUrl;
  assert.equal(urlOf("http://host:8000/"), "http://host:8000");
  assert.equal(urlOf("https://host:443/prefix/"), "https://host/prefix");
  assert.equal(urlOf("http://[::1]:80"), "http://[::1]");
  for (const invalid of ["host", "ftp://host", "http://u:secret@host"]) {
    assert.throws(() => urlOf(invalid), (error) => {
      assert.ok(error instanceof InvalidURLError && !error.message.includes("secret"));
      assert.equal(error.code, "INVALID_URL");
      return true;
    });
  }
});

test("the environment provides the URL and the key", async (t) => {
  const { url, requests } = await startService(t);
  const { EMBEDSERVE_URL, EMBEDSERVE_API_KEY } = process.env;
  t.after(() => {
    for (const [name, value] of Object.entries({ EMBEDSERVE_URL, EMBEDSERVE_API_KEY })) {
      if (value === undefined) delete process.env[name];
      else process.env[name] = value;
    }
  });
  process.env["EMBEDSERVE_URL"] = "";
  assert.equal(new Client().baseUrl, "http://127.0.0.1:8000");
  process.env["EMBEDSERVE_URL"] = url;
  process.env["EMBEDSERVE_API_KEY"] = "sk-env";
  await new Client().embed("a");
  await new Client({ apiKey: "sk-option" }).embed("a");
  const keys = requests.map(({ headers }) => headers["authorization"]);
  assert.deepEqual(keys, ["Bearer sk-env", "Bearer sk-option"]);
  assert.equal(new Client({ baseUrl: "http://host" }).baseUrl, "http://host");
});

test("invalid options are rejected by the constructor", async () => {
  const invalidOptions: ClientOptions[] = [
    { timeoutMs: NaN },
    { maxRetries: -1 },
    { retryDelayMs: -1 },
    { maxRetryDelayMs: -1 },
    { batchSize: 0 },
    { concurrency: 1.5 },
    { expectedSpace: "nothing" },
  ];
  for (const options of invalidOptions) assert.throws(() => new Client(options), TypeError);
  await assert.rejects(new Client().info({ timeoutMs: -1 }), TypeError);
});
