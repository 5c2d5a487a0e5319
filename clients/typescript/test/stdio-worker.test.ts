/** The worker with a fake process over standard input and output. */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test, type TestContext } from "node:test";
import { fileURLToPath } from "node:url";
import {
  ParseError,
  RequestTimeoutError,
  StdioWorker,
  type StdioWorkerOptions,
  WorkerError,
} from "embedserve-client/node";

const FAKES = fileURLToPath(new URL("../../test/fakes/", import.meta.url));
const WORKER = join(FAKES, "worker.mjs");

// Neither an idle worker nor a test that waits for its exit keeps the event loop alive.
const keepAlive = setInterval(() => {}, 1000);
after(() => clearInterval(keepAlive));

interface Fixture {
  readonly worker: StdioWorker;
  /** Returns the mode of each process that was started. */
  readonly starts: () => string[];
}

function createWorker(
  t: TestContext,
  faults = {},
  options: StdioWorkerOptions = {},
): Fixture {
  const directory = mkdtempSync(join(tmpdir(), "worker-"));
  const FAKE_LOG = join(directory, "log");
  const worker = new StdioWorker({
    command: [process.execPath, WORKER],
    env: { ...process.env, FAULTS: JSON.stringify(faults), FAKE_LOG },
    restartDelayMs: 10,
    ...options,
  });
  t.after(async () => {
    await worker.stop();
    rmSync(directory, { recursive: true });
  });
  const starts = () => readFileSync(FAKE_LOG, "utf8").trim().replaceAll("start ", "").split("\n");
  return { worker, starts };
}

function isAlive(pid = 0): boolean {
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
}

async function waitFor(condition: () => boolean): Promise<void> {
  for (let i = 0; i < 500 && !condition(); i++) {
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  assert.ok(condition());
}

test("one process serves queries and batches", async (t) => {
  const lines: string[] = [];
  const { worker, starts } = createWorker(t, {}, { onProgress: (line) => lines.push(line) });
  assert.equal(worker.status().state, "stopped");
  const query = await worker.encodeQuery("abc");
  assert.ok(query instanceof Float32Array);
  const { pid, state, pending } = worker.status();
  assert.deepEqual([...query], [3, pid, Math.fround(0.1)]);
  assert.deepEqual([state, pending], ["ready", 0]);
  const batch = await worker.encodeBatch(["a", "", "Grüße 🌍"]);
  assert.deepEqual(batch.map((vector) => vector[0]), [1, 0, 8]);
  assert.deepEqual(await worker.encodeBatch([]), []);
  assert.equal((await worker.start()).pid, pid);
  assert.deepEqual(starts(), ["server"]);
  assert.deepEqual(lines, ["loading"]);
  await worker.stop();
  assert.ok(!isAlive(pid));
  assert.equal(worker.status().state, "stopped");
  assert.equal((await worker.encodeQuery("ab"))[0], 2);
});

test("replies may come in any order", async (t) => {
  const { worker } = createWorker(t);
  const order: string[] = [];
  const embed = (text: string) =>
    worker.encodeQuery(text).then((vector) => {
      order.push(text);
      assert.equal(vector[0], text.length);
    });
  await Promise.all(["slow text", "a", "slow", "bcd"].map(embed));
  assert.deepEqual(order, ["a", "bcd", "slow text", "slow"]);
});

test("lines that aren't replies are counted and ignored", async (t) => {
  const { worker } = createWorker(t, { garbage: true });
  assert.equal((await worker.encodeQuery("abc"))[0], 3);
  assert.equal(worker.status().ignoredLines, 5);
});

test("errors of the worker, and invalid replies", async (t) => {
  const { worker } = createWorker(t);
  await assert.rejects(worker.encodeQuery("error"), (error) => {
    assert.ok(error instanceof WorkerError);
    assert.deepEqual([error.code, error.message], ["WORKER_ERROR", "The text is bad."]);
    return true;
  });
  await assert.rejects(worker.encodeQuery("wrong"), ParseError);
  await assert.rejects(worker.encodeBatch(["wrong"]), ParseError);
  await assert.rejects(worker.encodeBatch(["few"]), ParseError);
  await assert.rejects(worker.encodeQuery(1 as never), TypeError);
  await assert.rejects(worker.encodeBatch("text" as never), TypeError);
  assert.equal((await worker.encodeQuery("abc"))[0], 3);
});

test("requests can time out and be aborted, and late replies are ignored", async (t) => {
  const { worker } = createWorker(t, {}, { timeoutMs: 50 });
  await assert.rejects(worker.encodeQuery("silence"), RequestTimeoutError);
  await assert.rejects(worker.encodeQuery("slow"), { code: "TIMEOUT" });
  const reason = new Error("enough");
  const controller = new AbortController();
  const aborted = worker.encodeQuery("silence", { signal: controller.signal, timeoutMs: 9000 });
  controller.abort(reason);
  await assert.rejects(aborted, (error) => error === reason);
  await waitFor(() => worker.status().ignoredLines === 1);
  assert.equal(worker.status().pending, 0);
  assert.equal((await worker.encodeQuery("abc"))[0], 3);
});

test("requests of a crashed process are sent to the next one", async (t) => {
  const { worker, starts } = createWorker(t);
  const first = (await worker.start()).pid;
  const texts = ["slow", "die", "after"];
  const vectors = await Promise.all(texts.map((text) => worker.encodeQuery(text)));
  assert.deepEqual(vectors.map((vector) => vector[0]), [4, 3, 5]);
  for (const vector of vectors) assert.notEqual(vector[1], first);
  assert.deepEqual(starts(), ["server", "server"]);
  assert.equal(worker.status().restarts, 1);
  assert.match(worker.status().lastError?.message ?? "", /status 1/);
});

test("a request that crashes two processes isn't sent to a third", async (t) => {
  const { worker, starts } = createWorker(t, { alwaysCrashes: true });
  await assert.rejects(worker.encodeQuery("die"), WorkerError);
  await waitFor(() => worker.status().state === "ready");
  assert.equal((await worker.encodeQuery("abc"))[0], 3);
  assert.equal(starts().length, 3);
});

test("if the worker keeps failing, each request gets a process of its own", async (t) => {
  const { worker, starts } = createWorker(t, { failsFrom: 1 }, { maxRestarts: 2 });
  const [query, batch] = await Promise.all([
    worker.encodeQuery("abc"),
    worker.encodeBatch(["a", "bc"]),
  ]);
  assert.equal(query[0], 3);
  assert.deepEqual(batch.map((vector) => vector[0]), [1, 2]);
  assert.equal(worker.status().state, "one-shot");
  assert.deepEqual(starts(), ["server", "server", "server", "encode-query", "encode-batch"]);
  assert.match(worker.status().lastError?.message ?? "", /status 4.*broken/s);
  assert.equal((await worker.encodeQuery("--help"))[0], 6);
});

test("a request of the last process that crashes gets a process of its own", async (t) => {
  const { worker, starts } = createWorker(t, { failsFrom: 2 }, { maxRestarts: 1 });
  assert.equal((await worker.encodeQuery("die"))[0], 3);
  assert.deepEqual(starts(), ["server", "server", "encode-query"]);
});

test("a worker that isn't ready in time counts as failed", async (t) => {
  const options = { maxRestarts: 1, readyTimeoutMs: 3000 };
  const { worker, starts } = createWorker(t, { neverReady: true }, options);
  assert.equal((await worker.start()).state, "one-shot");
  assert.match(worker.status().lastError?.message ?? "", /not ready after 3000 ms/);
  assert.deepEqual(starts(), ["server", "server"]);
});

test("errors of one-shot processes", async (t) => {
  const { worker } = createWorker(t, { failsFrom: 1, oneShotFails: true }, { maxRestarts: 0 });
  await assert.rejects(worker.encodeQuery("a"), { code: "WORKER_ERROR", message: "no model" });
  await assert.rejects(worker.encodeBatch(["a"]), /status 9.*no memory/s);
  await assert.rejects(worker.encodeQuery("a\0b"), WorkerError);
});

test("a missing program is an error without retries", async (t) => {
  const { worker } = createWorker(t, {}, { command: ["/no/such/program"], restartDelayMs: 60_000 });
  await assert.rejects(worker.start(), /ENOENT/);
  await assert.rejects(worker.encodeQuery("a"), WorkerError);
  await assert.rejects(worker.encodeQuery("a", { timeoutMs: 20_000 }), WorkerError);
  assert.equal(worker.status().state, "stopped");
});

test("`stop` rejects pending requests", async (t) => {
  const { worker } = createWorker(t);
  const { pid } = await worker.start();
  const rejected = assert.rejects(worker.encodeQuery("silence"), /was stopped/);
  await waitFor(() => worker.status().pending === 1);
  await Promise.all([worker.stop(), worker.stop(), rejected]);
  assert.ok(!isAlive(pid));
});

test("`stop` cancels a start", async (t) => {
  let hasStarted = false;
  const onProgress = () => (hasStarted = true);
  const { worker } = createWorker(t, { neverReady: true }, { onProgress });
  const rejected = assert.rejects(worker.encodeQuery("a"), WorkerError);
  await waitFor(() => hasStarted);
  await worker.stop();
  await rejected;
});

test("a worker that doesn't exit is killed", async (t) => {
  const { worker } = createWorker(t, { ignoresStop: true });
  const { pid } = await worker.start();
  const { setTimeout: originalSetTimeout } = globalThis;
  t.mock.method(globalThis, "setTimeout", (work: () => void, ms?: number) =>
    originalSetTimeout(work, ms === 5000 ? 100 : ms),
  );
  await worker.stop();
  assert.ok(!isAlive(pid));
});

test("long lines to a worker that reads slowly", async (t) => {
  const { worker } = createWorker(t, { slowReader: true });
  const long = "ä".repeat(3_000_000);
  const queries = Array.from({ length: 8 }, (_, i) => worker.encodeQuery(long + "x".repeat(i)));
  const texts = Array.from({ length: 20_000 }, (_, i) => "y".repeat(i % 7));
  const batch = worker.encodeBatch(texts);
  const vectors = await Promise.all(queries);
  const lengths = vectors.map((vector) => vector[0]);
  assert.deepEqual(lengths, [...vectors.keys()].map((i) => 3_000_000 + i));
  assert.deepEqual((await batch).map((vector) => vector[0]), texts.map((text) => text.length));
});

test("a pending request keeps the event loop alive, an idle worker doesn't", async () => {
  const source = `
    import { StdioWorker } from "embedserve-client/node";
    const worker = new StdioWorker({ command: [process.execPath, ${JSON.stringify(WORKER)}] });
    await worker.start();
    const [length, pid] = await worker.encodeQuery("slow", { timeoutMs: Infinity });
    console.log(pid);`;
  const args = ["--input-type=module", "--eval", source];
  const cwd = fileURLToPath(new URL("../../", import.meta.url));
  const program = spawn(process.execPath, args, { cwd, stdio: ["ignore", "pipe", "inherit"] });
  let text = "";
  program.stdout.on("data", (chunk) => (text += chunk));
  await once(program, "exit");
  assert.ok(Number(text) > 0);
  await waitFor(() => !isAlive(Number(text)));
});
