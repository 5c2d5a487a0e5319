/** The service as a child: its life, and what calls see of it. */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test, type TestContext } from "node:test";
import { fileURLToPath } from "node:url";
import {
  EmbedSidecar,
  NetworkError,
  SidecarError,
  type SidecarOptions,
  TimeoutError,
} from "embedserve-client/node";
import { freePort, send, service, vectorOf } from "./service.js";

const FAKES = fileURLToPath(new URL("../../../test/fakes/", import.meta.url));
const SERVICE = join(FAKES, "service.mjs");

// A service that is ready doesn't keep a program going, nor do tests that wait for its crash.
const alive = setInterval(() => {}, 1000);
after(() => clearInterval(alive));

interface Fake {
  readonly sidecar: EmbedSidecar;
  readonly port: number;
  /** What the fakes wrote down. */
  readonly log: () => string;
  readonly crash: () => Promise<unknown>;
}

async function fake(t: TestContext, told = {}, options: SidecarOptions = {}): Promise<Fake> {
  const folder = mkdtempSync(join(tmpdir(), "sidecar-"));
  const FAKE_LOG = join(folder, "log");
  const port = options.port ?? (await freePort());
  const sidecar = new EmbedSidecar({
    command: [process.execPath, SERVICE],
    env: { ...process.env, FAKE: JSON.stringify(told), FAKE_LOG },
    restartDelay: 20,
    client: { retryDelay: 10 },
    ...options,
    port,
  });
  t.after(async () => {
    const { pid } = sidecar.getStatus();
    // Those that don't stop by themselves have their own test.
    if (pid !== undefined && "stubborn" in told) process.kill(pid, "SIGKILL");
    await sidecar.stopSidecar();
    rmSync(folder, { recursive: true });
  });
  const crash = () => fetch(`http://127.0.0.1:${port}/crash`).catch(() => {});
  return { sidecar, port, log: () => readFileSync(FAKE_LOG, "utf8"), crash };
}

function isAlive(pid: number): boolean {
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

test("it starts, embeds, restarts and stops", async (t) => {
  const lines: string[] = [];
  const onProgress = (line: string) => lines.push(line);
  const { sidecar, log, port } = await fake(t, { slowMs: 300 }, { onProgress });
  assert.deepEqual([sidecar.getStatus().state, sidecar.getStatus().running], ["stopped", false]);
  const events: string[] = [];
  for (const name of ["ready", "stopped", "crashed", "failed"] as const) {
    sidecar.on(name, () => events.push(name));
  }
  const [status, again] = await Promise.all([sidecar.startSidecar(), sidecar.startSidecar()]);
  assert.deepEqual(status.pid, again.pid);
  assert.deepEqual([status.state, status.running, status.managed], ["ready", true, true]);
  assert.deepEqual([status.port, status.url], [port, `http://127.0.0.1:${port}`]);
  const pid = status.pid ?? 0;
  assert.ok(isAlive(pid));
  assert.deepEqual(lines.sort(), ["loading", "still loading"]);
  assert.equal((await sidecar.embed(["ab", "c"]))[0]?.[0], 2);
  assert.equal((await sidecar.embedSingle("abc"))[0], 3);
  assert.equal((await sidecar.client.checkHealth()).model, "fake");
  const second = (await sidecar.restartSidecar()).pid ?? 0;
  assert.notEqual(second, pid);
  assert.ok(!isAlive(pid));
  await Promise.all([sidecar.stopSidecar(), sidecar.stopSidecar()]);
  await sidecar.stopSidecar();
  assert.equal(sidecar.getStatus().state, "stopped");
  assert.ok(!isAlive(second));
  assert.deepEqual(events, ["ready", "stopped", "ready", "stopped"]);
  assert.match(log(), /^start \d+ --port \d+$/m);
  assert.match(log(), /^(SIGINT|EOF)$/m);
});

test("the configuration goes behind `serve`", async (t) => {
  const command = [process.execPath, SERVICE, "serve", "--until-eof"];
  const { sidecar, log, port } = await fake(t, {}, { command, config: "my.yaml" });
  await sidecar.startSidecar();
  assert.ok(log().includes(` serve my.yaml --until-eof --port ${port}\n`));
});

test("the first call starts it", async (t) => {
  const { sidecar, log } = await fake(t, { slowMs: 4000 }, { client: { timeout: 3000 } });
  const both = await Promise.all([sidecar.embed(["a"]), sidecar.embedSingle("b")]);
  assert.equal(both.length, 2);
  assert.equal(log().split("start").length, 2);
});

test("a timeout of the call's own holds for the start, too", async (t) => {
  const { sidecar } = await fake(t, { slowMs: 5000 });
  await assert.rejects(sidecar.embed(["a"], { timeout: 200 }), TimeoutError);
  const aborter = new AbortController();
  setTimeout(() => aborter.abort(), 20);
  const aborted = sidecar.startSidecar({ signal: aborter.signal });
  await assert.rejects(aborted, (error) => error === aborter.signal.reason);
  assert.equal(sidecar.getStatus().state, "starting");
});

test("after a crash it is started again, and calls wait for that", async (t) => {
  const { sidecar, crash } = await fake(t, { slowMs: 100 });
  const first = (await sidecar.startSidecar()).pid;
  const seen: unknown[] = [];
  sidecar.on("restarting", (attempt) => seen.push(attempt));
  const crashed = once(sidecar, "crashed");
  await crash();
  assert.deepEqual(await crashed, [{ code: 1, signal: null }]);
  assert.equal(sidecar.getStatus().state, "restarting");
  assert.match(sidecar.getStatus().lastError?.message ?? "", /ended with status 1/);
  const [vector] = await sidecar.embed(["abc"]);
  assert.notEqual(vector?.[1], first);
  assert.deepEqual(seen, [1]);
  assert.equal(sidecar.getStatus().restarts, 1);
});

test("a call survives a crash under it", async (t) => {
  const { sidecar } = await fake(t);
  const found = await sidecar.embed(["crash", "abc"]);
  assert.equal(found[1]?.[0], 3);
});

test("it gives up when it never stays up, and can be started anew", async (t) => {
  const { sidecar, crash, log } = await fake(t, { failsFrom: 2 }, { maxRestarts: 3 });
  await sidecar.startSidecar();
  const failed = once(sidecar, "failed");
  await crash();
  const waits = sidecar.embed(["a"]);
  await assert.rejects(waits, (error) => {
    assert.ok(error instanceof SidecarError);
    assert.equal(error.code, "SIDECAR_ERROR");
    assert.match(error.message, /4 times in a row.*status 3.*no such model/s);
    return true;
  });
  assert.ok((await failed)[0] instanceof SidecarError);
  assert.equal(sidecar.getStatus().state, "failed");
  assert.equal(log().split("start").length - 1, 4);
  await assert.rejects(sidecar.startSidecar(), /no such model/);
  assert.equal(log().split("start").length - 1, 5);
});

test("a first start that fails says why at once", async (t) => {
  const { sidecar, log } = await fake(t, { failsFrom: 1 });
  await assert.rejects(sidecar.startSidecar(), /ended with status 3.*\nloading\n|no such model/s);
  assert.equal(sidecar.getStatus().state, "failed");
  assert.equal(log().split("start").length - 1, 1);
  const { sidecar: none } = await fake(t, {}, { command: ["/no/such/program"] });
  await assert.rejects(none.startSidecar(), (error) => {
    assert.ok(error instanceof SidecarError);
    assert.match(error.message, /ENOENT/);
    return true;
  });
});

test("one that is never ready is stopped", async (t) => {
  const { sidecar, log } = await fake(t, { neverReady: true }, { readyTimeout: 3000 });
  await assert.rejects(sidecar.startSidecar(), /wasn't ready within 3000 ms/);
  const pid = Number(/start (\d+)/.exec(log())?.[1]);
  assert.ok(!isAlive(pid));
});

test("stopping ends a start, and who waits for it is told", async (t) => {
  let hasStarted = false;
  const onProgress = () => (hasStarted = true);
  const { sidecar, log } = await fake(t, { neverReady: true }, { onProgress });
  const waits = [sidecar.startSidecar(), sidecar.embed(["a"])];
  const told = Promise.all(waits.map((one) => assert.rejects(one, /was stopped/)));
  await until(() => hasStarted);
  assert.equal(sidecar.getStatus().state, "starting");
  await sidecar.stopSidecar();
  await told;
  assert.ok(!isAlive(Number(/start (\d+)/.exec(log())?.[1])));
  assert.equal(sidecar.getStatus().state, "stopped");
});

test("stopping ends restarts", async (t) => {
  const { sidecar, crash } = await fake(t, {}, { restartDelay: 60_000 });
  await sidecar.startSidecar();
  const crashed = once(sidecar, "crashed");
  await crash();
  await crashed;
  const waits = assert.rejects(sidecar.embed(["a"]), SidecarError);
  await sidecar.stopSidecar();
  await waits;
  await assert.doesNotReject(sidecar.startSidecar());
});

test("a service that ignores being asked is killed", async (t) => {
  const { sidecar, log } = await fake(t, { stubborn: true });
  const pid = (await sidecar.startSidecar()).pid ?? 0;
  const { setTimeout: real } = globalThis;
  t.mock.method(globalThis, "setTimeout", (work: () => void, ms?: number) =>
    // The half minute that it has, and what follows, would be a long time for a test.
    real(work, ms === 30_000 ? 200 : ms === 35_000 ? 400 : ms),
  );
  await sidecar.stopSidecar();
  assert.ok(!isAlive(pid));
  assert.match(log(), /SIGINT/);
  assert.match(log(), /EOF/);
});

test("a service that is there already is used, and left alone", async (t) => {
  const { port, url } = await service(t);
  const { sidecar } = await fake(t, {}, { port });
  const status = await sidecar.startSidecar();
  assert.deepEqual([status.state, status.managed, status.pid], ["ready", false, undefined]);
  assert.deepEqual(await sidecar.embedSingle("abc"), vectorOf("abc"));
  await sidecar.stopSidecar();
  assert.equal((await fetch(`${url}/health`)).status, 200);
});

test("when that service goes away, one of our own takes its place", async (t) => {
  const { sidecar: other, port } = await fake(t);
  await other.startSidecar();
  const { sidecar } = await fake(t, {}, { port });
  await sidecar.startSidecar();
  assert.equal(sidecar.getStatus().managed, false);
  await other.stopSidecar();
  assert.equal((await sidecar.embedSingle("abc"))[1], sidecar.getStatus().pid);
  assert.equal(sidecar.getStatus().managed, true);
});

test("something else on the port is an error, and is left alone", async (t) => {
  const answers = [
    [404, "no"],
    [200, '{"hello": "world"}'],
  ] as const;
  for (const [status, body] of answers) {
    const { port } = await service(t, (_, response) => send(response, status, body));
    const { sidecar } = await fake(t, {}, { port });
    await assert.rejects(sidecar.startSidecar(), /isn't a service that is ready/);
    assert.equal((await fetch(`http://127.0.0.1:${port}`)).status, status);
  }
});

test("a network error of a service that lives is the caller's", async (t) => {
  const broken = async () => {
    throw new TypeError("fetch failed");
  };
  const { sidecar } = await fake(t);
  await sidecar.startSidecar();
  t.mock.method(globalThis, "fetch", broken);
  await assert.rejects(sidecar.embed(["a"]), NetworkError);
});

for (const way of ["end", "exit", "throw", "kill"]) {
  test(`the service doesn't outlive the program: ${way}`, async () => {
    const args = [join(FAKES, "program.mjs"), SERVICE, String(await freePort()), way];
    const program = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "ignore"] });
    let text = "";
    program.stdout.on("data", (chunk) => (text += chunk));
    await once(program, "exit");
    const pid = Number.parseInt(text, 10);
    assert.ok(pid > 0, text);
    // At a natural end there is time to wait for it.
    assert.equal(text.includes("stopped"), way === "end");
    await until(() => !isAlive(pid));
  });
}
