/** Fallbacks, default commands and logs. */

import assert from "node:assert/strict";
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { fileURLToPath } from "node:url";
import {
  Client,
  HTTPError,
  LocalModel,
  type Logger,
  NetworkError,
  SpaceMismatchError,
  Supervisor,
  WorkerError,
} from "embedserve-client/node";
import { HelpEmbeddingService, NomicEmbedder, PythonSidecarClient } from "embedserve-client/compat";
import { embedReply, freePort, send, SPACE, startService } from "./service.js";

const FAKES = fileURLToPath(new URL("../../test/fakes/", import.meta.url));

/** Returns an environment whose command `embedserve` is a fake. */
function fakeEnvironment(t: TestContext, more: NodeJS.ProcessEnv = {}): NodeJS.ProcessEnv {
  const bin = mkdtempSync(join(tmpdir(), "bin-"));
  t.after(() => rmSync(bin, { recursive: true }));
  const script = `#!/bin/sh\nexec "${process.execPath}" "${join(FAKES, "embedserve.mjs")}" "$@"\n`;
  writeFileSync(join(bin, "embedserve"), script);
  chmodSync(join(bin, "embedserve"), 0o755);
  return { ...process.env, PATH: `${bin}:${process.env["PATH"]}`, ...more };
}

function createModel(t: TestContext, more: NodeJS.ProcessEnv = {}): LocalModel {
  const model = new LocalModel("package:model", { env: fakeEnvironment(t, more) });
  t.after(() => model.stop());
  return model;
}

function createLogger(): { logger: Logger; lines: string[] } {
  const lines: string[] = [];
  const write = (level: string) => (message: string) => lines.push(`${level} ${message}`);
  const logger = {
    debug: write("debug"),
    info: write("info"),
    warn: write("warn"),
    error: write("error"),
  };
  return { logger, lines };
}

test("a local model embeds in its own space", async (t) => {
  const model = createModel(t);
  const vectors = await model.embed(["abc", "d"], { inputType: "query", dimensions: 2 });
  assert.deepEqual([...vectors], [Float32Array.of(3, 0.5), Float32Array.of(1, 0.5)]);
  assert.deepEqual([vectors.space, vectors.source], ["family-fp32", "local"]);
  assert.equal(vectors.info.model, "--local package:model server");
  await assert.rejects(model.embed(["a"], { normalize: false }), WorkerError);
  await assert.rejects(model.embed(["a"], { truncation: "chunk" }), /truncation: chunk/);
});

test("a local model that can't be used says why", async (t) => {
  const model = createModel(t, { LOCAL_FAILS: "1" });
  await assert.rejects(model.embed(["abc"]), /can't be used: .*no memory/s);
});

test("a client falls back while the service is away, and returns to it", async (t) => {
  const { logger, lines } = createLogger();
  const port = await freePort();
  const fallback = createModel(t, { LOCAL_SPACE: SPACE });
  const client = new Client({
    baseUrl: `http://127.0.0.1:${port}`,
    fallback,
    logger,
    retryDelayMs: 1,
  });
  const local = await client.embed(["secret text"]);
  assert.deepEqual([local.source, local.info.source, local.space], ["local", "local", SPACE]);
  assert.equal((await client.embed(["a"])).source, "local");
  const { requests } = await startService(t, undefined, port);
  let source = "local";
  for (let i = 0; source === "local" && i < 200; i++) {
    await new Promise((resolve) => setTimeout(resolve, 50));
    ({ source } = await client.embed(["a"]));
  }
  assert.equal(source, "service");
  assert.ok(requests.some(({ path }) => path === "/v1/embeddings"));
  const informed = lines.filter((line) => line.startsWith("info"));
  assert.match(informed[0] ?? "", /^info Retry 1 of 1 in \d+ ms: .*No response/);
  assert.match(informed[1] ?? "", /unavailable/);
  assert.match(informed.at(-1) ?? "", /is back/);
  assert.ok(!lines.some((line) => line.includes("secret text")));
});

test("vectors of a fallback in another space are an error", async (t) => {
  let isUp = true;
  const { url } = await startService(t, ({ body }, response) =>
    isUp
      ? send(response, 200, embedReply(body.input), { "x-embedding-space": SPACE })
      : send(response, 503, { error: "no" }),
  );
  const client = new Client({ baseUrl: url, fallback: createModel(t), maxRetries: 0 });
  await client.embed(["a"]);
  isUp = false;
  await assert.rejects(client.embed(["a"]), SpaceMismatchError);
});

test("an error of the request isn't a reason to fall back", async (t) => {
  const { url } = await startService(t, (_, response) => send(response, 400, { error: "no" }));
  const client = new Client({ baseUrl: url, fallback: createModel(t) });
  await assert.rejects(client.embed(["a"]), HTTPError);
});

test("a supervisor falls back if the service can't be started", async (t) => {
  const { logger, lines } = createLogger();
  const env = fakeEnvironment(t);
  const fallback = createModel(t);
  const port = await freePort();
  const supervisor = new Supervisor({ port, env, logger, client: { fallback, retryDelayMs: 1 } });
  t.after(() => supervisor.stop());
  const vectors = await supervisor.embed(["abc"]);
  assert.deepEqual([vectors.source, vectors[0]?.[0]], ["local", 3]);
  assert.equal((await supervisor.embed(["a"])).source, "local");
  assert.equal(lines.filter((line) => /^error .*no memory/s.test(line)).length, 1);
  const alone = new Supervisor({ port, env });
  await assert.rejects(alone.embed(["abc"]), /no memory/);
});

test("an embedder falls back only to a model that is named", async (t) => {
  const env = fakeEnvironment(t);
  const port = await freePort();
  const create = (EMBEDSERVE_LOCAL_MODEL: string) => {
    const embedder = new NomicEmbedder({ port, env: { ...env, EMBEDSERVE_LOCAL_MODEL } });
    t.after(() => embedder.stop());
    return embedder;
  };
  const embedder = create("/models/nomic");
  const vectors = await embedder.embed(["abc", "d"]);
  assert.deepEqual(vectors, [[3, 0.5], [1, 0.5]]);
  assert.deepEqual([vectors.source, vectors.space], ["local", "family-fp32"]);
  const single = await embedder.embedSingle("abc");
  assert.deepEqual([single[0], single.source], [3, "local"]);
  assert.equal(single.model, "--local /models/nomic server");
  const command = new RegExp(`serve nomic --standalone --port ${port} --until-eof`);
  await assert.rejects(create("").embed(["abc"]), command);
  const { requests } = await startService(t, undefined, port);
  await assert.rejects(async () => {
    for (let i = 0; i < 200 && requests.length < 2; i++) {
      await new Promise((resolve) => setTimeout(resolve, 50));
      await embedder.embed(["abc"]);
    }
  }, SpaceMismatchError);
  assert.equal(requests.at(-1)?.body["model"], "nomic-embed-text-v1.5");
});

test("a worker starts a service unless EMBEDSERVE_URL names one", async (t) => {
  const env = fakeEnvironment(t);
  for (const [EMBEDSERVE_URL, command] of [
    ["", "stdio --start -- server"],
    ["http://127.0.0.1:9", "stdio server"],
  ]) {
    const { logger, lines } = createLogger();
    const service = new HelpEmbeddingService({ env: { ...env, EMBEDSERVE_URL }, logger });
    t.after(() => service.onModuleDestroy());
    assert.deepEqual(await service.encodeQuery("a"), [1]);
    assert.ok(lines.includes(`info ${command}`), lines.join());
  }
});

test("LOG_CATEGORIES selects what is written to standard error", async (t) => {
  const { LOG_CATEGORIES } = process.env;
  t.after(() => {
    if (LOG_CATEGORIES === undefined) delete process.env["LOG_CATEGORIES"];
    else process.env["LOG_CATEGORIES"] = LOG_CATEGORIES;
  });
  const { url } = await startService(t);
  const write = t.mock.method(console, "error", () => {});
  const linesOf = async (categories: string) => {
    process.env["LOG_CATEGORIES"] = categories;
    write.mock.resetCalls();
    await new Client({ baseUrl: url }).embed(["secret"]);
    return write.mock.calls.map(({ arguments: [line] }) => String(line));
  };
  assert.deepEqual(await linesOf("SUPERVISOR"), []);
  const [line = ""] = await linesOf("SUPERVISOR, CLIENT");
  assert.match(line, /^\[CLIENT\] debug \/v1\/embeddings: status 200 after \d+ ms$/);
  await linesOf("SIDECAR-CLIENT,SIDECAR-SERVICE");
  await new PythonSidecarClient({ baseUrl: url }).checkHealth();
  const sidecarLine = String(write.mock.calls.at(-1)?.arguments[0]);
  assert.match(sidecarLine, /^\[SIDECAR-CLIENT\] debug \/health: status 200/);
});

test("the body of an error response isn't logged: it may quote a text", async (t) => {
  const { logger, lines } = createLogger();
  const { url } = await startService(t, (_, response) => send(response, 500, "secret"));
  const client = new Client({ baseUrl: url, logger, maxRetries: 1, retryDelayMs: 1 });
  await assert.rejects(client.embed(["secret"]));
  assert.ok(lines.some((line) => /^info Retry 1 of 1 in \d+ ms: status 500$/.test(line)));
  assert.ok(!lines.some((line) => line.includes("secret")));
});

test("a logger without a method, and unknown options, are a TypeError", async () => {
  const incomplete = { warn() {}, error() {} } as never;
  assert.throws(() => new Client({ logger: incomplete }), /no method `log`/);
  for (const create of [
    () => new Client({ retries: 3 } as never),
    () => new Supervisor({ autoRestart: false } as never),
    () => new Supervisor({ client: { baseUrl: "http://host" } } as never),
    () => new LocalModel("a", { model: "b" } as never),
  ]) {
    assert.throws(create, (error) => {
      assert.ok(error instanceof TypeError);
      return /There is no option `\w+` here\. The options are \w+, /.test(error.message);
    });
  }
  const client = new Client({ baseUrl: "http://127.0.0.1:9", maxRetries: 0 });
  await assert.rejects(client.embed(["a"], { timeout: 1 } as never), /no option `timeout`/);
  await assert.rejects(client.health({ timeout: 1 } as never), /no option `timeout`/);
  await assert.rejects(client.embed(["a"]), NetworkError);
});
