/** Against a real service, whose address is in EMBEDSERVE_URL; else nothing is tried. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { EmbedClient, type Embeddings, HttpError } from "embedserve-client";

const baseUrl = process.env["EMBEDSERVE_URL"];
const apiKey = process.env["EMBEDSERVE_API_KEY"];
const options = { skip: baseUrl ? false : "EMBEDSERVE_URL isn't set" };
const client = new EmbedClient({ baseUrl, apiKey, timeout: 120_000 });

function assertSame(one: Float32Array | undefined, other: ArrayLike<number> | undefined): void {
  assert.deepEqual(one, Float32Array.from(other ?? []));
}

test("health, info and models", options, async () => {
  const health = await client.checkHealth();
  assert.match(health.status, /^(ok|degraded)$/);
  assert.equal(health.dim, 384);
  const info = await client.info();
  assert.deepEqual([info.dim, info.model_id.length > 0], [384, true]);
  assert.ok((await client.models()).some(({ id }) => id === health.model));
  const { space } = await client.embed(["one"]);
  assert.equal(space, info.space);
  assert.equal(client.space, info.space);
});

test("vectors of unit length, with what is known of them", options, async () => {
  const found = await client.embed(["Hello, world", "word ".repeat(2000)]);
  for (const vector of found) {
    assert.equal(vector.length, 384);
    assert.ok(Math.abs(Math.hypot(...vector) - 1) < 1e-3);
  }
  assert.deepEqual(found.truncated, [1]);
  assert.ok(found.tokens > 5);
  assert.equal((await client.embed(["a"], { dimensions: 64 }))[0]?.length, 64);
});

test("base64 and decimals are the same to the last bit", options, async () => {
  const texts = ["Hello, world", "Grüße aus 東京 🌍", " "];
  const headers = {
    "content-type": "application/json",
    ...(apiKey ? { authorization: `Bearer ${apiKey}` } : {}),
  };
  const body = JSON.stringify({ input: texts, encoding_format: "float" });
  const reply = await fetch(`${client.url}/v1/embeddings`, { method: "POST", headers, body });
  const { data } = (await reply.json()) as { data: { embedding: number[] }[] };
  const found = await client.embed(texts);
  texts.forEach((_, i) => assertSame(found[i], data[i]?.embedding));
});

test("a thousand texts in order, some of them twice", options, async () => {
  const texts = Array.from({ length: 1000 }, (_, i) => `The number ${i % 700} is a number.`);
  const small = new EmbedClient({ baseUrl, apiKey, timeout: 120_000, batchSize: 64 });
  const [found, again] = await Promise.all([client.embed(texts), small.embedBatch(texts)]);
  assert.equal(found.length, 1000);
  for (let i = 700; i < 1000; i++) assertSame(found[i], found[i - 700]);
  const near = (rows: Embeddings, i: number, text: Float32Array) =>
    (rows[i] as Float32Array).reduce((sum, one, at) => sum + one * (text[at] ?? 0), 0);
  for (const i of [0, 255, 256, 511, 699, 999]) {
    const [alone] = await client.embed([texts[i] as string]);
    assert.ok(near(found, i, alone as Float32Array) > 0.999);
    assert.ok(near(again, i, alone as Float32Array) > 0.999);
  }
});

test("queries and documents", options, async () => {
  const query = await client.embedQuery("How tall is the Eiffel Tower?");
  const rows = await client.embedDocuments(["It is 330 metres tall.", "Bread is baked."]);
  const nearness = (row: Float32Array) => row.reduce((sum, x, i) => sum + x * (query[i] ?? 0), 0);
  const [near = 0, far = 0] = rows.map(nearness);
  assert.ok(near > far);
});

test("the service's errors", options, async () => {
  const refused = async (work: Promise<unknown>, status: number, words: RegExp) =>
    assert.rejects(work, (error) => {
      assert.ok(error instanceof HttpError);
      assert.equal(error.status, status);
      assert.match(error.message, words);
      assert.ok(error.requestId);
      return true;
    });
  await refused(client.embed(["fine", ""]), 400, /empty/i);
  await refused(client.embed(["a"], { model: "no-such-model" }), 404, /no-such-model/);
  await refused(client.embed(["a"], { dimensions: 100_000 }), 400, /dimensions/);
  await refused(client.embed(["a"], { inputType: "nonsense" }), 400, /nonsense/);
});

test("abort", options, async () => {
  const aborter = new AbortController();
  const texts = Array.from({ length: 5000 }, (_, i) => `An unseen text ${Math.random()} ${i}`);
  setTimeout(() => aborter.abort(), 20);
  await assert.rejects(client.embed(texts, { signal: aborter.signal }), { name: "AbortError" });
  assert.equal((await client.embed(["still there"])).length, 1);
});
