/** The worker over standard input and output. */

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
  StdioWorker,
  TimeoutError,
  WorkerError,
  type WorkerOptions,
} from "embedserve-client/node";

const FAKES = fileURLToPath(new URL("../../../test/fakes/", import.meta.url));
const WORKER = join(FAKES, "worker.mjs");

// An idle worker doesn't keep a program going, nor do tests that wait for its end.
const alive = setInterval(() => {}, 1000);
after(() => clearInterval(alive));

interface Fake {
  readonly worker: StdioWorker;
  /** How often it was started, and in which modes. */
  readonly starts: () => string[];
}

function fake(t: TestContext, told = {}, options: WorkerOptions = {}): Fake {
  const folder = mkdtempSync(join(tmpdir(), "worker-"));
  const FAKE_LOG = join(folder, "log");
  const worker = new StdioWorker({
    command: [process.execPath, WORKER],
    env: { ...process.env, FAKE: JSON.stringify(told), FAKE_LOG },
    restartDelay: 10,
    ...options,
  });
  t.after(async () => {
    await worker.stop();
    rmSync(folder, { recursive: true });
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

async function until(condition: () => boolean): Promise<void> {
  for (let i = 0; i < 500 && !condition(); i++) await new Promise((go) => setTimeout(go, 20));
  assert.ok(condition());
}

test("queries and batches, by one worker that stays", async (t) => {
  const lines: string[] = [];
  const { worker, starts } = fake(t, {}, { onProgress: (line) => lines.push(line) });
  assert.equal(worker.getStatus().state, "stopped");
  const query = await worker.encodeQuery("abc");
  assert.ok(query instanceof Float32Array);
  const { pid, state, pending } = worker.getStatus();
  assert.deepEqual([...query], [3, pid, Math.fround(0.1)]);
  assert.deepEqual([state, pending], ["ready", 0]);
  const batch = await worker.encodeBatch(["a", "", "Grüße 🌍"]);
  assert.deepEqual(batch.map((one) => one[0]), [1, 0, 8]);
  assert.deepEqual(await worker.encodeBatch([]), []);
  assert.equal((await worker.start()).pid, pid);
  assert.deepEqual(starts(), ["server"]);
  assert.deepEqual(lines, ["loading"]);
  await worker.stop();
  assert.ok(!isAlive(pid));
  assert.equal(worker.getStatus().state, "stopped");
  assert.equal((await worker.encodeQuery("ab"))[0], 2);
});

test("answers come in any order", async (t) => {
  const { worker } = fake(t);
  const order: string[] = [];
  const ask = (text: string) =>
    worker.encodeQuery(text).then((found) => {
      order.push(text);
      assert.equal(found[0], text.length);
    });
  await Promise.all(["slow one", "a", "slow", "bcd"].map(ask));
  assert.deepEqual(order, ["a", "bcd", "slow one", "slow"]);
});

test("what is no answer is counted and left out", async (t) => {
  const { worker } = fake(t, { garbage: true });
  assert.equal((await worker.encodeQuery("abc"))[0], 3);
  assert.equal(worker.getStatus().ignored, 5);
});

test("the worker's own error, and answers that are none", async (t) => {
  const { worker } = fake(t);
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

test("a request has a time, and can be aborted; late answers do no harm", async (t) => {
  const { worker } = fake(t, {}, { requestTimeout: 50 });
  await assert.rejects(worker.encodeQuery("silence"), TimeoutError);
  await assert.rejects(worker.encodeQuery("slow"), { code: "TIMEOUT" });
  const reason = new Error("enough");
  const aborter = new AbortController();
  const aborted = worker.encodeQuery("silence", { signal: aborter.signal, timeout: 9000 });
  aborter.abort(reason);
  await assert.rejects(aborted, (error) => error === reason);
  await until(() => worker.getStatus().ignored === 1);
  assert.equal(worker.getStatus().pending, 0);
  assert.equal((await worker.encodeQuery("abc"))[0], 3);
});

test("what a dead worker leaves is sent to the next one", async (t) => {
  const { worker, starts } = fake(t);
  const first = (await worker.start()).pid;
  const found = await Promise.all(["slow", "die", "after"].map((text) => worker.encodeQuery(text)));
  assert.deepEqual(found.map((one) => one[0]), [4, 3, 5]);
  for (const one of found) assert.notEqual(one[1], first);
  assert.deepEqual(starts(), ["server", "server"]);
  assert.equal(worker.getStatus().restarts, 1);
  assert.match(worker.getStatus().lastError?.message ?? "", /status 1/);
});

test("a request that kills two workers isn't sent to a third", async (t) => {
  const { worker, starts } = fake(t, { diesAlways: true });
  await assert.rejects(worker.encodeQuery("die"), WorkerError);
  await until(() => worker.getStatus().state === "ready");
  assert.equal((await worker.encodeQuery("abc"))[0], 3);
  assert.equal(starts().length, 3);
});

test("when no worker stays up, each request has a process", async (t) => {
  const { worker, starts } = fake(t, { failsFrom: 1 }, { maxRestarts: 2 });
  const asked = [worker.encodeQuery("abc"), worker.encodeBatch(["a", "bc"])] as const;
  const [query, batch] = await Promise.all(asked);
  assert.equal(query[0], 3);
  assert.deepEqual(batch.map((one) => one[0]), [1, 2]);
  assert.equal(worker.getStatus().state, "one-shot");
  assert.deepEqual(starts(), ["server", "server", "server", "encode-query", "encode-batch"]);
  assert.match(worker.getStatus().lastError?.message ?? "", /status 4.*broken/s);
  assert.equal((await worker.encodeQuery("--help"))[0], 6);
});

test("what a worker leaves that isn't followed by another gets a process, too", async (t) => {
  const { worker, starts } = fake(t, { failsFrom: 2 }, { maxRestarts: 1 });
  assert.equal((await worker.encodeQuery("die"))[0], 3);
  assert.deepEqual(starts(), ["server", "server", "encode-query"]);
});

test("a worker that is never ready is given up", async (t) => {
  const { worker, starts } = fake(t, { neverReady: true }, { maxRestarts: 1, readyTimeout: 3000 });
  assert.equal((await worker.start()).state, "one-shot");
  assert.match(worker.getStatus().lastError?.message ?? "", /wasn't ready within 3000 ms/);
  assert.deepEqual(starts(), ["server", "server"]);
});

test("errors of processes for one request", async (t) => {
  const { worker } = fake(t, { failsFrom: 1, oneShotFails: true }, { maxRestarts: 0 });
  await assert.rejects(worker.encodeQuery("a"), { code: "WORKER_ERROR", message: "no model" });
  await assert.rejects(worker.encodeBatch(["a"]), /status 9.*no memory/s);
  await assert.rejects(worker.encodeQuery("a\0b"), WorkerError);
});

test("no such program is an error at once", async (t) => {
  const { worker } = fake(t, {}, { command: ["/no/such/program"], restartDelay: 60_000 });
  await assert.rejects(worker.start(), /ENOENT/);
  await assert.rejects(worker.encodeQuery("a"), WorkerError);
  await assert.rejects(worker.encodeQuery("a", { timeout: 20_000 }), WorkerError);
  assert.equal(worker.getStatus().state, "stopped");
});

test("stopping rejects what is asked", async (t) => {
  const { worker } = fake(t);
  const { pid } = await worker.start();
  const waits = assert.rejects(worker.encodeQuery("silence"), /was stopped/);
  await until(() => worker.getStatus().pending === 1);
  await Promise.all([worker.stop(), worker.stop(), waits]);
  assert.ok(!isAlive(pid));
});

test("stopping ends a start", async (t) => {
  let hasStarted = false;
  const { worker } = fake(t, { neverReady: true }, { onProgress: () => (hasStarted = true) });
  const waits = assert.rejects(worker.encodeQuery("a"), WorkerError);
  await until(() => hasStarted);
  await worker.stop();
  await waits;
});

test("a worker that ignores being asked is killed", async (t) => {
  const { worker } = fake(t, { stubborn: true });
  const { pid } = await worker.start();
  const { setTimeout: real } = globalThis;
  t.mock.method(globalThis, "setTimeout", (work: () => void, ms?: number) =>
    real(work, ms === 5000 ? 100 : ms),
  );
  await worker.stop();
  assert.ok(!isAlive(pid));
});

test("lines as long as they come, to a worker that is slow to read", async (t) => {
  const { worker } = fake(t, { slowReader: true });
  const long = "ä".repeat(3_000_000);
  const asked = Array.from({ length: 8 }, (_, i) => worker.encodeQuery(long + "x".repeat(i)));
  const texts = Array.from({ length: 20_000 }, (_, i) => "y".repeat(i % 7));
  const batch = worker.encodeBatch(texts);
  const found = await Promise.all(asked);
  assert.deepEqual(found.map((one) => one[0]), [...found.keys()].map((i) => 3_000_000 + i));
  assert.deepEqual((await batch).map((one) => one[0]), texts.map((text) => text.length));
});

test("an idle worker doesn't keep a program going, one that is asked does", async () => {
  const source = `
    import { StdioWorker } from "embedserve-client/node";
    const worker = new StdioWorker({ command: [process.execPath, ${JSON.stringify(WORKER)}] });
    await worker.start();
    const [length, pid] = await worker.encodeQuery("slow", { timeout: Infinity });
    console.log(pid);`;
  const args = ["--input-type=module", "--eval", source];
  const cwd = fileURLToPath(new URL("../../../", import.meta.url));
  const program = spawn(process.execPath, args, { cwd, stdio: ["ignore", "pipe", "inherit"] });
  let text = "";
  program.stdout.on("data", (chunk) => (text += chunk));
  await once(program, "exit");
  assert.ok(Number(text) > 0);
  await until(() => !isAlive(Number(text)));
});
