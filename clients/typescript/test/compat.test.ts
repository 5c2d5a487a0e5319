/** Programs that use the interfaces of earlier systems: only the import is that of this package. */

import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test, type TestContext } from "node:test";
import { fileURLToPath } from "node:url";
import {
  HelpEmbeddingService,
  MAX_RESTART_ATTEMPTS,
  NomicEmbedder,
  PythonSidecarClient,
  PythonSidecarError,
  PythonSidecarService,
  REQUEST_TIMEOUT_MS,
  RESTART_BACKOFF_MS,
} from "embedserve-client/compat";
import { freePort, send, startService } from "./service.js";
import { createConfig, isAlive, REAL } from "./standalone-config.js";

const FAKES = fileURLToPath(new URL("../../test/fakes/", import.meta.url));
const EXAMPLES = fileURLToPath(new URL("../../examples/", import.meta.url));

// Neither a ready sidecar nor an idle worker keeps the event loop alive.
const keepAlive = setInterval(() => {}, 1000);
after(() => clearInterval(keepAlive));

/** Returns the example `embed_server.py` with a small model. */
function createScript(t: TestContext): string {
  const { config, directory } = createConfig(t);
  const source = readFileSync(join(EXAMPLES, "embed_server.py"), "utf8");
  const script = join(directory, "embed_server.py");
  writeFileSync(script, source.replace('"multilingual"', JSON.stringify(config)));
  return script;
}

test("a sidecar by its script: start, vectors, crash, restart, stop", REAL, async (t) => {
  const lines: string[] = [];
  const log = (line: string) => lines.push(line);
  const port = await freePort();
  const service = new PythonSidecarService({
    pythonPath: "python",
    scriptPath: createScript(t),
    port,
    autoRestart: true,
    logger: { log, warn: log, error: log },
  });
  t.after(() => service.stopSidecar());
  const client = new PythonSidecarClient({ port });
  assert.equal(await client.checkHealth(), false);
  assert.equal((await service.getStatus()).running, false);
  await service.startSidecar();
  assert.equal(await client.checkHealth(), true);
  const status = await service.getStatus();
  assert.deepEqual([status.running, status.state, status.port], [true, "ready", port]);
  const vectors = await client.embedBatch(["a text", "another"], true);
  assert.deepEqual(vectors.map((vector) => vector.length), [64, 64]);
  assert.ok(vectors.every((vector) => Array.isArray(vector)));
  assert.deepEqual(JSON.parse(JSON.stringify(vectors)), vectors);

  process.kill(status.pid ?? 0, "SIGKILL");
  // The first requests meet the crash, the others the restart.
  const texts = Array.from({ length: 300 }, (_, i) => `text ${i}`);
  const [again, many] = await Promise.all([
    client.embedBatch(["a text", "another"]),
    client.embedBatch(texts),
  ]);
  assert.deepEqual(again, vectors);
  assert.equal(many.length, 300);
  const { pid, restarts } = await service.getStatus();
  assert.equal(restarts, 1);
  assert.notEqual(pid, status.pid);
  assert.ok(lines.some((line) => line.includes("SIGKILL")));
  // What the sidecar prints after it is ready goes on to the logger.
  const printed = lines.length;
  await service.stopSidecar();
  assert.match(lines.slice(printed).join("\n"), /the process ends/);
  assert.ok(!isAlive(pid));
  assert.equal(await client.checkHealth(), false);
});

test("`autoRestart: false`, and `pythonPath` without a script", REAL, async (t) => {
  const { config } = createConfig(t);
  const port = await freePort();
  const service = new PythonSidecarService({
    pythonPath: "python",
    config,
    port,
    autoRestart: false,
  });
  t.after(() => service.stopSidecar());
  const { pid = 0 } = await service.startSidecar();
  process.kill(pid, "SIGKILL");
  let state: string = "ready";
  for (let i = 0; state !== "failed" && i < 200; i++) {
    await new Promise((resolve) => setTimeout(resolve, 20));
    ({ state } = await service.getStatus());
  }
  assert.equal(state, "failed");
  assert.notEqual((await service.restartSidecar()).pid, pid);
});

test("a client accepts a sidecar without its shared cache", async (t) => {
  const body = { status: "degraded", model: "fake", dim: 4, device: "cpu" };
  const { port } = await startService(t, (_, response) => send(response, 200, body));
  assert.equal(await new PythonSidecarClient({ port }).checkHealth(), true);
});

test("a sidecar that isn't ready, or isn't one, is not healthy", async (t) => {
  let status = 503;
  const { port } = await startService(t, (_, response) => send(response, status, "<html>"));
  const client = new PythonSidecarClient({ baseUrl: "http://localhost", port });
  assert.equal(await client.checkHealth(), false);
  status = 200;
  assert.equal(await client.checkHealth(), false);
});

test("the request of the sidecar's client, and its defaults", async (t) => {
  const { port, requests, url } = await startService(t, (_, response) =>
    send(response, 200, { vectors: [[1, 0.5]] }),
  );
  assert.deepEqual(await new PythonSidecarClient({ port }).embedBatch(["a"], false), [[1, 0.5]]);
  await new PythonSidecarClient({ baseUrl: `${url}/` }).embedBatch(["a"]);
  assert.deepEqual(
    requests.map(({ path, body }) => [path, body]),
    [
      ["/embed", { texts: ["a"], normalize: false }],
      ["/embed", { texts: ["a"], normalize: true }],
    ],
  );
  assert.deepEqual(await new PythonSidecarClient({ port }).embedBatch([]), []);
});

test("errors of the sidecar's client", async (t) => {
  let [status, body]: [number, unknown] = [500, { error: "no" }];
  const { port, requests } = await startService(t, (_, response) =>
    status === 0 ? undefined : send(response, status, body),
  );
  const client = new PythonSidecarClient({ port, retryDelay: 1, timeout: 5000 });
  const assertFails = async (type: string, count: number, embedder = client) => {
    requests.length = 0;
    await assert.rejects(embedder.embedBatch(["a"]), (error) => {
      assert.ok(error instanceof PythonSidecarError);
      assert.deepEqual([error.type, error.code], [type, type]);
      assert.equal(error.status, type === "HTTP_ERROR" ? status : undefined);
      return true;
    });
    assert.equal(requests.length, count);
  };
  await assertFails("HTTP_ERROR", 3);
  status = 400;
  await assertFails("HTTP_ERROR", 1);
  [status, body] = [200, { vectors: [] }];
  await assertFails("PARSE_ERROR", 1);
  status = 0;
  await assertFails("TIMEOUT", 1, new PythonSidecarClient({ port, timeout: 50 }));
  const absent = new PythonSidecarClient({ port: await freePort(), retryDelay: 1 });
  await assertFails("NETWORK_ERROR", 0, absent);
});

test("unknown and invalid options are a TypeError", () => {
  for (const create of [
    () => new PythonSidecarClient({ retries: 1 } as never),
    () => new PythonSidecarClient({ retryAttempts: -1 }),
    () => new PythonSidecarClient({ port: 0 }),
    () => new PythonSidecarService({ autorestart: false } as never),
    () => new NomicEmbedder({ model: "a" } as never),
    () => new HelpEmbeddingService({ scriptPath: "a" } as never),
  ]) {
    assert.throws(create, TypeError);
  }
});

for (const argument of [[], ["server"]]) {
  test(`a script of one's own: ${["script", ...argument].join(" ")}`, async (t) => {
    const directory = mkdtempSync(join(tmpdir(), "help-"));
    const FAKE_LOG = join(directory, "log");
    const create = (faults: object) =>
      new HelpEmbeddingService({
        command: [process.execPath, join(FAKES, "worker.mjs"), ...argument],
        env: { ...process.env, FAULTS: JSON.stringify({ needsMode: true, ...faults }), FAKE_LOG },
        restartDelayMs: 10,
        maxRestarts: 1,
      });
    const [service, failing] = [create({}), create({ failsFrom: 1 })];
    t.after(async () => {
      await Promise.all([service.onModuleDestroy(), failing.onModuleDestroy()]);
      rmSync(directory, { recursive: true });
    });
    await service.onModuleInit();
    const { pid } = service.getStatus();
    const query: number[] = await service.encodeQuery("abc");
    assert.deepEqual(JSON.parse(JSON.stringify(query)), [3, pid, Math.fround(0.1)]);
    const documents: number[][] = await service.encodeBatch(["a", "bc"]);
    assert.deepEqual(documents.map(([length]) => length), [1, 2]);
    await service.onModuleDestroy();
    assert.ok(!isAlive(pid));
    // The server mode fails, so each request gets a process of its own.
    await failing.onModuleInit();
    assert.equal((await failing.encodeQuery("abc"))[0], 3);
    assert.equal((await failing.encodeQuery("--help"))[0], 6);
    assert.deepEqual((await failing.encodeBatch(["a", "bc"])).map(([length]) => length), [1, 2]);
    const modes = readFileSync(FAKE_LOG, "utf8").trim().split("\n");
    const oneShot = ["start encode-query", "start encode-query", "start encode-batch"];
    assert.deepEqual(modes, [...Array(3).fill("start server"), ...oneShot]);
  });
}

test("the constants are the defaults of the worker", () => {
  const constants = [REQUEST_TIMEOUT_MS, MAX_RESTART_ATTEMPTS, RESTART_BACKOFF_MS];
  assert.deepEqual(constants, [60_000, 3, 1000]);
});

test("an embedder starts its service, and tells where vectors come from", REAL, async (t) => {
  const { config } = createConfig(t);
  const port = await freePort();
  const embedder = new NomicEmbedder({ config, port });
  t.after(() => embedder.stop());
  const vectors: number[][] = await embedder.embed(["a text", "another"]);
  const { source, model, space } = await embedder.embed(["a text"]);
  assert.deepEqual([source, model], ["service", "hashing"]);
  assert.match(space ?? "", /-fp32$/);
  assert.deepEqual(await embedder.embedSingle("a text"), vectors[0]);
  assert.equal((await embedder.embedSingle("a text")).source, "service");
  assert.equal(JSON.stringify(vectors), JSON.stringify(vectors.map((vector) => [...vector])));
  process.kill(embedder.status().pid ?? 0, "SIGKILL");
  assert.deepEqual([...(await embedder.embed(["a text", "another"]))], vectors);
  await embedder.stop();
  await assert.rejects(fetch(`http://127.0.0.1:${port}/health`));
});
