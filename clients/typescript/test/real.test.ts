/** Tests with the service at EMBEDSERVE_URL; without it they are skipped. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { Client, HTTPError } from "embedserve-client";

const baseUrl = process.env["EMBEDSERVE_URL"];
const apiKey = process.env["EMBEDSERVE_API_KEY"];
const options = { skip: baseUrl ? false : "EMBEDSERVE_URL isn't set" };
const client = new Client({ baseUrl, apiKey, timeoutMs: 120_000 });

function assertSame(a: Float32Array | undefined, b: ArrayLike<number> | undefined): void {
  assert.deepEqual(a, Float32Array.from(b ?? []));
}

test("health, info and models", options, async () => {
  const health = await client.health();
  assert.match(health.status, /^(ok|degraded)$/);
  assert.equal(health.dim, 384);
  const info = await client.info();
  assert.deepEqual([info.dim, info.model_id.length > 0], [384, true]);
  assert.ok((await client.models()).some((name) => name === health.model));
  const { space } = await client.embed(["one"]);
  assert.equal(space, info.space);
  assert.equal(client.space, info.space);
});

test("vectors of unit length, with metadata", options, async () => {
  const vectors = await client.embed(["Hello, world", "word ".repeat(2000)]);
  for (const vector of vectors) {
    assert.equal(vector.length, 384);
    assert.ok(Math.abs(Math.hypot(...vector) - 1) < 1e-3);
  }
  assert.deepEqual(vectors.info.truncated, [1]);
  assert.ok(vectors.info.tokens > 5);
  assert.equal((await client.embed(["a"], { dimensions: 64 }))[0]?.length, 64);
});

test("base64 and decimal numbers are equal to the last bit", options, async () => {
  const texts = ["Hello, world", "Grüße aus 東京 🌍", " "];
  const headers = {
    "content-type": "application/json",
    ...(apiKey ? { authorization: `Bearer ${apiKey}` } : {}),
  };
  const body = JSON.stringify({ input: texts, encoding_format: "float" });
  const reply = await fetch(`${client.baseUrl}/v1/embeddings`, { method: "POST", headers, body });
  const { data } = (await reply.json()) as { data: { embedding: number[] }[] };
  const vectors = await client.embed(texts);
  texts.forEach((_, i) => assertSame(vectors[i], data[i]?.embedding));
});

test("a thousand texts in order, some of them duplicates", options, async () => {
  const texts = Array.from({ length: 1000 }, (_, i) => `The number ${i % 700} is a number.`);
  const small = new Client({ baseUrl, apiKey, timeoutMs: 120_000, batchSize: 64 });
  const [vectors, rebatched] = await Promise.all([client.embed(texts), small.embed(texts)]);
  assert.equal(vectors.length, 1000);
  for (let i = 700; i < 1000; i++) assertSame(vectors[i], vectors[i - 700]);
  const dot = (a: Float32Array, b: Float32Array) =>
    a.reduce((sum, x, j) => sum + x * (b[j] ?? 0), 0);
  for (const i of [0, 255, 256, 511, 699, 999]) {
    const single = await client.embed(texts[i] as string);
    assert.ok(dot(vectors[i] as Float32Array, single) > 0.999);
    assert.ok(dot(rebatched[i] as Float32Array, single) > 0.999);
  }
});

test("queries and documents", options, async () => {
  const query = await client.embedQuery("How tall is the Eiffel Tower?");
  const rows = await client.embedDocuments(["It is 330 metres tall.", "Bread is baked."]);
  const score = (row: Float32Array) => row.reduce((sum, x, i) => sum + x * (query[i] ?? 0), 0);
  const [relevant = 0, irrelevant = 0] = rows.map(score);
  assert.ok(relevant > irrelevant);
});

test("error responses", options, async () => {
  const assertRejected = async (call: Promise<unknown>, status: number, message: RegExp) =>
    assert.rejects(call, (error) => {
      assert.ok(error instanceof HTTPError);
      assert.equal(error.status, status);
      assert.match(error.message, message);
      assert.ok(error.requestId);
      return true;
    });
  await assertRejected(client.embed(["fine", ""]), 400, /empty/i);
  await assertRejected(client.embed(["a"], { model: "no-such-model" }), 404, /no-such-model/);
  await assertRejected(client.embed(["a"], { dimensions: 100_000 }), 400, /dimensions/);
  await assertRejected(client.embed(["a"], { inputType: "nonsense" }), 400, /nonsense/);
});

test("abort", options, async () => {
  const controller = new AbortController();
  const texts = Array.from({ length: 5000 }, (_, i) => `An unseen text ${Math.random()} ${i}`);
  setTimeout(() => controller.abort(), 20);
  await assert.rejects(client.embed(texts, { signal: controller.signal }), { name: "AbortError" });
  assert.equal((await client.embed(["a text"])).length, 1);
});
