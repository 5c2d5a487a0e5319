/** What the client asks for, and what it makes of the answers. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { EmbedClient, EmbedError, ParseError, SpaceMismatchError } from "embedserve-client";
import { base64Of, reply, SPACE, send, service, vectorOf } from "./service.js";

const TEXTS = ["one", "two", "Grüße, 世界 🌍", "one"];

test("texts become vectors in their order", async (t) => {
  const { url, asked } = await service(t);
  const client = new EmbedClient({ baseUrl: url });
  const found = await client.embed(TEXTS);
  assert.ok(Array.isArray(found));
  assert.deepEqual([...found], TEXTS.map(vectorOf));
  assert.ok(found[0] instanceof Float32Array);
  assert.equal(found.space, SPACE);
  assert.equal(found.model, "fake");
  assert.equal(found.tokens, 8);
  assert.deepEqual(found.truncated, []);
  assert.equal(client.space, SPACE);
  assert.deepEqual(asked[0]?.body, { input: TEXTS, encoding_format: "base64" });
  assert.equal(asked[0]?.headers["content-type"], "application/json");
  assert.equal(asked[0]?.headers["authorization"], undefined);
});

test("what is asked for goes over the wire by the service's names", async (t) => {
  const { url, asked } = await service(t);
  const client = new EmbedClient({ baseUrl: url, model: "mine", apiKey: "sk-1" });
  await client.embed(["a"], { inputType: "code", dimensions: 2, normalize: false });
  await client.embed(["a"], { model: "other" });
  await client.embedBatch(["a"]);
  await client.embedBatch(["a"], false);
  await client.embedDocuments(["a"]);
  assert.deepEqual(await client.embedQuery("q"), vectorOf("q"));
  const of = (input: string[], more: object) => ({ input, encoding_format: "base64", ...more });
  assert.deepEqual(
    asked.map(({ body }) => body),
    [
      of(["a"], { model: "mine", input_type: "code", dimensions: 2, normalized: false }),
      of(["a"], { model: "other" }),
      of(["a"], { model: "mine", normalized: true }),
      of(["a"], { model: "mine", normalized: false }),
      of(["a"], { model: "mine", input_type: "document" }),
      of(["q"], { model: "mine", input_type: "query" }),
    ],
  );
  assert.equal(asked[0]?.headers["authorization"], "Bearer sk-1");
});

test("health, info and models", async (t) => {
  const { url, asked } = await service(t);
  const client = new EmbedClient({ baseUrl: url });
  const { status, model, dim, device } = await client.checkHealth();
  assert.deepEqual([status, model, dim, device], ["ok", "fake", 4, "cpu"]);
  assert.equal((await client.info()).space, SPACE);
  assert.deepEqual((await client.models()).map(({ id }) => id), ["fake", "alias"]);
  assert.deepEqual(asked.map(({ path }) => path), ["/health", "/info", "/v1/models"]);
});

test("another service's health, info and models are no answer", async (t) => {
  const { url } = await service(t, (_, response) => send(response, 200, { status: 1 }));
  const client = new EmbedClient({ baseUrl: url });
  await assert.rejects(client.checkHealth(), ParseError);
  await assert.rejects(client.info(), ParseError);
  await assert.rejects(client.models(), ParseError);
});

test("a long list goes in batches, a few at once, and comes in order", async (t) => {
  const texts = Array.from({ length: 95 }, (_, i) => `text ${i % 50}`);
  const { url, asked, busiest } = await service(t, ({ body }, response) => {
    // Earlier ones take longer.
    const wait = body.input.includes("text 0") ? 60 : 5;
    setTimeout(() => {
      const headers = { "x-embedding-space": SPACE, "x-truncated-inputs": "0,2-3" };
      send(response, 200, reply(body.input), body.input.includes("text 20") ? headers : {
        "x-embedding-space": SPACE,
      });
    }, wait);
  });
  const found = await new EmbedClient({ baseUrl: url, batchSize: 10, concurrency: 3 }).embed(texts);
  assert.deepEqual([...found], texts.map(vectorOf));
  assert.equal(asked.length, 10);
  assert.equal(busiest(), 3);
  assert.equal(found.tokens, 190);
  assert.deepEqual(found.truncated, [20, 22, 23, 70, 72, 73]);
});

test("the first error ends the other requests", async (t) => {
  let left = 0;
  const { url, asked } = await service(t, ({ body }, response) => {
    if (body.input[0] === "3") return send(response, 400, { error: { message: "no" } });
    return response.on("close", () => left++);
  });
  const client = new EmbedClient({ baseUrl: url, batchSize: 1, concurrency: 4 });
  const start = performance.now();
  await assert.rejects(client.embed([..."0123456789"]), { status: 400, message: "no" });
  // Far less than the time that each of them has.
  assert.ok(performance.now() - start < 10_000);
  await new Promise((resolve) => setTimeout(resolve, 50));
  assert.equal(asked.length, 4);
  assert.equal(left, 3);
});

test("no texts need no request", async () => {
  const client = new EmbedClient({ fetch: () => assert.fail("it asked") });
  assert.equal((await client.embed([])).length, 0);
});

test("what isn't a list of strings is a TypeError", async () => {
  const client = new EmbedClient({ fetch: () => assert.fail("it asked") });
  for (const wrong of ["text", [1], undefined, { length: 1 }]) {
    await assert.rejects(client.embed(wrong as never), TypeError);
  }
});

test("vectors are put where their index says, from decimals, too", async (t) => {
  const { url } = await service(t, ({ body }, response) => {
    const { data, ...rest } = reply(body.input, (vector) => [...vector]);
    send(response, 200, { ...rest, data: data.reverse() });
  });
  const found = await new EmbedClient({ baseUrl: url }).embed(TEXTS);
  assert.deepEqual([...found], TEXTS.map(vectorOf));
  // Without the header of the space nothing is known of the other one's absence.
  assert.equal(found.space, undefined);
  assert.equal(found.truncated, undefined);
});

const good = base64Of(vectorOf("x"));
const item = (index: unknown, embedding: unknown = good) => ({ index, embedding });
const BROKEN: Record<string, unknown> = {
  "no JSON": "<html>",
  "cut short": '{"data": [',
  "empty": "",
  "null": "null",
  "no data": { vectors: [] },
  "too few": { data: [item(0)] },
  "too many": { data: [item(0), item(1), item(1)] },
  "twice the same": { data: [item(0), item(0)] },
  "an index too far": { data: [item(0), item(2)] },
  "no index": { data: [item(0), item(undefined)] },
  "half an index": { data: [item(0), item(0.5)] },
  "unlike widths": { data: [item(0), item(1, base64Of(Float32Array.of(1)))] },
  "empty vectors": { data: [item(0, ""), item(1, "")] },
  "no base64": { data: [item(0), item(1, `${good.slice(0, -4)}!!!!`)] },
  "no whole float": { data: [item(0), item(1, good.slice(0, 8))] },
  "not finite": { data: [item(0), item(1, base64Of(Float32Array.of(1, NaN, 0, 0)))] },
  "words": { data: [item(0), item(1, ["1", "2", "3", "4"])] },
  "no vector": { data: [item(0), item(1, null)] },
};
for (const [name, body] of Object.entries(BROKEN)) {
  test(`a broken reply is a ParseError: ${name}`, async (t) => {
    const { url, asked } = await service(t, (_, response) => send(response, 200, body));
    const client = new EmbedClient({ baseUrl: url });
    await assert.rejects(client.embed(["x", "y"]), (error) => {
      assert.ok(error instanceof ParseError && error instanceof EmbedError);
      assert.equal(error.code, "PARSE_ERROR");
      assert.equal(error.name, "ParseError");
      return true;
    });
    assert.equal(asked.length, 1);
  });
}

test("vectors of another space are refused", async (t) => {
  let space: string | undefined;
  const { url } = await service(t, ({ body }, response) =>
    send(response, 200, reply(body.input), space ? { "x-embedding-space": space } : {}),
  );
  const client = new EmbedClient({ baseUrl: url, retryAttempts: 3, retryDelay: 1 });
  const lax = new EmbedClient({ baseUrl: url, allowMixedSpaces: true });
  const ask = async (name: string | undefined) => {
    space = name;
    await lax.embed(["a"]);
    await client.embed(["a"]);
  };
  await ask("fam-ily-fp32");
  for (const fine of ["fam-ily-bf16", "fam-ily-fp16", "fam-ily-bf16+float16", undefined]) {
    await ask(fine);
  }
  assert.equal(client.space, "fam-ily-fp32");
  for (const wrong of ["fam-other-fp32", "fam-fp32", "fam-ily-int8", "fam-ily-int8+fp32"]) {
    await assert.rejects(ask(wrong), (error) => {
      assert.ok(error instanceof SpaceMismatchError);
      assert.deepEqual([error.expected, error.received], ["fam-ily-fp32", wrong]);
      assert.equal(error.code, "SPACE_MISMATCH");
      return true;
    });
  }
  const expects = new EmbedClient({ baseUrl: url, expectSpace: "mine-fp32" });
  space = "mine-bf16";
  await expects.embed(["a"]);
  space = "yours-fp32";
  await assert.rejects(expects.embed(["a"]), SpaceMismatchError);
});

test("a service that changes its space in the middle of a call is noticed", async (t) => {
  const { url } = await service(t, ({ body }, response, n) =>
    send(response, 200, reply(body.input), { "x-embedding-space": n < 3 ? "a-fp32" : "b-fp32" }),
  );
  const client = new EmbedClient({ baseUrl: url, batchSize: 1 });
  await assert.rejects(client.embed(["1", "2", "3"]), SpaceMismatchError);
});

test("where the service is", () => {
  const at = (baseUrl?: string, port?: number) => new EmbedClient({ baseUrl, port }).url;
  assert.equal(at(), "http://127.0.0.1:8421");
  assert.equal(at(undefined, 9), "http://127.0.0.1:9");
  assert.equal(at("http://host:8000/", 9), "http://host:8000");
  assert.equal(at("https://host:443/prefix/"), "https://host/prefix");
  assert.equal(at("http://[::1]"), "http://[::1]:8421");
  assert.equal(at("http://[::1]:80"), "http://[::1]");
  for (const wrong of ["host", "ftp://host", "http://u:secret@host"]) {
    assert.throws(() => at(wrong), (error) => {
      assert.ok(error instanceof TypeError && !error.message.includes("secret"));
      return true;
    });
  }
});

test("options that can't be used are refused at once", async () => {
  for (const wrong of [
    { port: 0 },
    { timeout: NaN },
    { retryAttempts: -1 },
    { retryDelay: -1 },
    { batchSize: 0 },
    { concurrency: 1.5 },
    { expectSpace: "nothing" },
  ]) {
    assert.throws(() => new EmbedClient(wrong), TypeError);
  }
  await assert.rejects(new EmbedClient().info({ timeout: -1 }), TypeError);
});
