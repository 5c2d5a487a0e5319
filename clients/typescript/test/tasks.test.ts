/** Reranking, classification, sparse vectors and images, and calls to several models. */

import assert from "node:assert/strict";
import { test } from "node:test";
import {
  Client,
  NetworkError,
  ParseError,
  ServerError,
  SpaceMismatchError,
} from "embedserve-client";
import { embedReply, type Handler, SPACE, send, startService, vectorOf } from "./service.js";

const DOCUMENTS = ["bb", "a", "dddd", "ccc", "eeee"];
const OTHER_SPACE = "ffff0000-fp32";
const PNG = Buffer.from(
  "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==",
  "base64",
);
const noFallback = { embed: () => Promise.reject(new Error("The fallback was used.")) };

/** Scores documents by their length. */
const rerank: Handler = ({ path, body }, response) => {
  if (path !== "/v1/rerank") return false;
  const documents = body["documents"] as string[];
  const results = documents.map((document, index) => ({
    index,
    relevance_score: document.length / 10,
  }));
  results.sort((a, b) => b.relevance_score - a.relevance_score);
  return send(response, 200, { results: results.slice(0, body["top_n"] as number | undefined) });
};

test("documents are ranked by score", async (t) => {
  const { url, requests } = await startService(t, rerank);
  const client = new Client({ baseUrl: url });
  assert.deepEqual(await client.rerank("query", DOCUMENTS), [
    { index: 2, score: 0.4, document: "dddd" },
    { index: 4, score: 0.4, document: "eeee" },
    { index: 3, score: 0.3, document: "ccc" },
    { index: 0, score: 0.2, document: "bb" },
    { index: 1, score: 0.1, document: "a" },
  ]);
  assert.deepEqual(requests[0]?.body, { query: "query", documents: DOCUMENTS });
  assert.deepEqual(await client.rerank("query", []), []);
  assert.equal(requests.length, 1);
});

test("options of a rerank call are sent", async (t) => {
  const { url, requests } = await startService(t, rerank);
  const client = new Client({ baseUrl: url, model: "m" });
  const options = { topN: 2, lane: "bulk", useCache: false } as const;
  assert.equal((await client.rerank("q", DOCUMENTS, options)).length, 2);
  await client.rerank("q", DOCUMENTS, { model: "n" });
  const common = { query: "q", documents: DOCUMENTS };
  assert.deepEqual(
    requests.map(({ body }) => body as unknown),
    [
      { ...common, model: "m", top_n: 2, use_cache: false },
      { ...common, model: "n" },
    ],
  );
  assert.equal(requests[0]?.headers["x-priority"], "bulk");
});

test("long lists of documents are split and merged", async (t) => {
  const { url, requests } = await startService(t, rerank);
  const client = new Client({ baseUrl: url, batchSize: 2 });
  for (const topN of [undefined, 1, 3, 99]) {
    const results = await client.rerank("q", DOCUMENTS, { topN });
    assert.deepEqual(results.map(({ index }) => index), [2, 4, 3, 0, 1].slice(0, topN));
    assert.ok(results.every(({ index, document }) => document === DOCUMENTS[index]));
  }
  assert.ok(requests.every(({ headers }) => headers["x-priority"] === "bulk"));
});

/** Scores the labels of texts by their length, in the wrong order. */
const classify: Handler = ({ path, body }, response) => {
  if (path !== "/predict") return false;
  const rows = (body["inputs"] as string[][]).map(([text = ""]) => [
    { label: "long", score: text.length / 10 },
    { label: "short", score: 1 - text.length / 10 },
  ]);
  return send(response, 200, rows);
};

test("labels of each text are sorted by score", async (t) => {
  const { url, requests } = await startService(t, classify);
  const client = new Client({ baseUrl: url, batchSize: 2, model: "m" });
  const rows = await client.classify(DOCUMENTS);
  const expected = DOCUMENTS.map(({ length }) => [
    { label: "short", score: 1 - length / 10 },
    { label: "long", score: length / 10 },
  ]);
  assert.deepEqual(rows, expected);
  assert.ok(requests.every(({ headers }) => headers["x-priority"] === "bulk"));
  assert.deepEqual(await client.classify([]), []);
  assert.equal(requests.length, 3);
  const options = { lane: "interactive", useCache: false, model: "n" } as const;
  const labels = await client.classify("eight888", options);
  assert.deepEqual(labels.map(({ label }) => label), ["long", "short"]);
  const { body, headers } = requests[3] as (typeof requests)[number];
  const sent: unknown = body;
  assert.deepEqual(sent, { inputs: [["eight888"]], model: "n", use_cache: false });
  assert.equal(headers["x-priority"], "interactive");
});

test("a failing classifier is retried, and has no fallback", async (t) => {
  let failures = 2;
  const { url } = await startService(t, (request, response, n) =>
    failures-- > 0 ? send(response, 503, { error: "no" }) : classify(request, response, n),
  );
  const client = new Client({ baseUrl: url, retryDelayMs: 0 });
  assert.equal((await client.classify(DOCUMENTS)).length, 5);
  const withFallback = new Client({ baseUrl: url, retryDelayMs: 0, fallback: noFallback });
  failures = 2;
  await assert.rejects(
    withFallback.classify(DOCUMENTS),
    (error) => error instanceof ServerError && /fallback only embeds texts/.test(error.message),
  );
});

test("invalid arguments are a TypeError", async () => {
  const client = new Client({ baseUrl: "http://127.0.0.1:9" });
  const invalid = [
    () => client.rerank("q", "abc" as never),
    () => client.rerank("q", [1] as never),
    () => client.rerank("q", ["a"], { topN: 0 }),
    () => client.rerank("q", ["a"], { dimensions: 3 } as never),
    () => client.classify([1] as never),
    () => client.classify(["a"], { topN: 1 } as never),
    () => client.embedSparse([1] as never),
    () => client.embedSparse(["a"], { normalize: true } as never),
    () => client.embedImages([new Uint8Array(20)]),
    () => client.embedImages([PNG], { truncation: "end" } as never),
  ];
  for (const call of invalid) await assert.rejects(call, TypeError);
});

test("a malformed response is a ParseError", async (t) => {
  let reply: unknown;
  const { url } = await startService(t, (_, response) => send(response, 200, reply));
  const client = new Client({ baseUrl: url });
  const results = (...pairs: unknown[][]) => ({
    results: pairs.map(([index, relevance_score]) => ({ index, relevance_score })),
  });
  const rankings = [
    {},
    [],
    results([0, 1]),
    results([0, 1], [0, 1]),
    results([0, 1], [2, 1]),
    results([0, 1], ["1", 1]),
    results([0, 1], [1, "high"]),
    results([0, 1], [1, null]),
  ];
  for (reply of rankings) await assert.rejects(client.rerank("q", ["a", "b"]), ParseError);
  const label = { label: "a", score: 0.5 };
  const labels = [
    {},
    [],
    [[]],
    [label],
    [[label], [label]],
    [[{ label: "a" }]],
    [[{ label: "a", score: null }]],
    [[{ label: 1, score: 0.5 }]],
  ];
  for (reply of labels) await assert.rejects(client.classify(["a"]), ParseError);
  const vectors = [{}, [], [[], []], [1], [[{ index: 1 }]], [[{ index: -1, value: 1 }]]];
  for (reply of vectors) await assert.rejects(client.embedSparse(["a"]), ParseError);
});

test("a failing reranker is retried, has no fallback, and doesn't divert embeddings", async (t) => {
  let failures = 2;
  const { url } = await startService(t, (request, response, n) =>
    request.path === "/v1/rerank" && failures-- > 0
      ? send(response, 503, { error: "no" })
      : rerank(request, response, n),
  );
  const client = new Client({ baseUrl: url, retryDelayMs: 0 });
  assert.equal((await client.rerank("q", DOCUMENTS)).length, 5);
  const options = { retryDelayMs: 0, fallback: noFallback };
  const withFallback = new Client({ ...options, baseUrl: url });
  failures = 2;
  await assert.rejects(
    withFallback.rerank("q", DOCUMENTS),
    (error) => error instanceof ServerError && /fallback only embeds texts/.test(error.message),
  );
  assert.equal((await withFallback.embed(["a"])).source, "service");
  const unreachable = new Client({ ...options, baseUrl: "http://127.0.0.1:9" });
  await assert.rejects(unreachable.embedSparse(["a"]), NetworkError);
  await assert.rejects(unreachable.embedImages(PNG), NetworkError);
});

test("sparse vectors are in the order of texts and indices", async (t) => {
  const { url, requests } = await startService(t, ({ body }, response) => {
    const rows = (body["inputs"] as string[]).map((text) =>
      [...new Set(text)].map((c) => ({ index: c.charCodeAt(0), value: text.split(c).length / 2 })),
    );
    send(response, 200, rows, { "x-embedding-space": SPACE });
  });
  const client = new Client({ baseUrl: url, batchSize: 2, model: "m" });
  assert.deepEqual(await client.embedSparse(["bab", "", "c"]), [
    { indices: Uint32Array.of(97, 98), values: Float32Array.of(1, 1.5) },
    { indices: Uint32Array.of(), values: Float32Array.of() },
    { indices: Uint32Array.of(99), values: Float32Array.of(1) },
  ]);
  const options = { truncation: "error", useCache: false, inputType: "query", model: "n" } as const;
  const { indices } = await client.embedSparse("a", options);
  assert.deepEqual(indices, Uint32Array.of(97));
  const body: unknown = requests.at(-1)?.body;
  assert.deepEqual(body, {
    inputs: ["a"],
    model: "n",
    prompt_name: "query",
    truncate: false,
    use_cache: false,
  });
  assert.equal(client.space, undefined);
});

test("images are sent as data URIs", async (t) => {
  const { url, requests } = await startService(t, ({ body }, response) => {
    const images = (body.input as unknown as { image: string }[]).map(({ image }) => image);
    send(response, 200, embedReply(images), { "x-embedding-space": SPACE });
  });
  const uri = `data:image/png;base64,${PNG.toString("base64")}`;
  const client = new Client({ baseUrl: url, batchSize: 2 });
  const vectors = await client.embedImages([PNG, uri, new Uint8Array(PNG)]);
  assert.deepEqual([...vectors], [uri, uri, uri].map(vectorOf));
  assert.equal(vectors.space, SPACE);
  await client.embedImages(Buffer.from("\xff\xd8\xff", "latin1"), { model: "n", dimensions: 2 });
  await client.embedImages(Buffer.from("RIFF\n\0\0\0WEBP", "latin1"));
  await client.embedImages(Buffer.from("GIF89a"));
  const types = requests.slice(2).map(({ body }) => /image\/\w+/.exec(JSON.stringify(body))?.[0]);
  assert.deepEqual(types, ["image/jpeg", "image/webp", "image/gif"]);
  assert.equal(requests[2]?.body["model"], "n");
  assert.equal(requests[2]?.body["dimensions"], 2);
});

test("requests with images stay below the limit of a body", async (t) => {
  const { url, requests } = await startService(t, ({ body }, response) =>
    send(response, 200, embedReply(body.input.map(() => "a")), { "x-embedding-space": SPACE }),
  );
  const large = Buffer.concat([PNG, Buffer.alloc(3 * 2 ** 20)]);
  const client = new Client({ baseUrl: url });
  assert.equal((await client.embedImages([large, large, PNG, PNG])).length, 4);
  assert.deepEqual(requests.map(({ body }) => body.input.length).sort(), [1, 3]);
});

test("each model that a call names has a space of its own", async (t) => {
  const { url, requests } = await startService(t, ({ path, body }, response) => {
    if (path !== "/v1/embeddings") return false;
    const space = body["model"] === "clip" ? OTHER_SPACE : SPACE;
    return send(response, 200, embedReply(body.input), { "x-embedding-space": space });
  });
  const client = new Client({ baseUrl: url });
  await client.embed(["a"]);
  assert.equal((await client.embed(["a"], { model: "clip" })).space, OTHER_SPACE);
  assert.equal(client.space, SPACE);
  const strict = new Client({ baseUrl: url, expectedSpace: SPACE });
  await assert.rejects(strict.embed(["a"], { model: "clip" }), SpaceMismatchError);
  await client.health({ model: "a b" });
  await new Client({ baseUrl: url, model: "clip" }).isHealthy();
  await client.info({ model: "clip" });
  assert.deepEqual(
    requests.slice(3).map(({ path }) => path),
    ["/health?model=a%20b", "/health?model=clip", "/info?model=clip"],
  );
});

test("the fallback replaces only the client's model", async (t) => {
  const { url } = await startService(t, (_, response) => send(response, 503, {}));
  const client = new Client({ baseUrl: url, retryDelayMs: 0, fallback: noFallback });
  await assert.rejects(client.embed(["a"], { model: "other" }), ServerError);
  await assert.rejects(client.embed(["a"]), /The fallback was used/);
});
