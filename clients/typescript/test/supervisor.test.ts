/** The supervisor with a fake service: starts, crashes, restarts and stops. */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test, type TestContext } from "node:test";
import { fileURLToPath } from "node:url";
import {
  NetworkError,
  RequestTimeoutError,
  ServiceNotRunningError,
  Supervisor,
  type SupervisorOptions,
} from "embedserve-client/node";
import { freePort, send, startService, vectorOf } from "./service.js";

const FAKES = fileURLToPath(new URL("../../test/fakes/", import.meta.url));
const SERVICE = join(FAKES, "service.mjs");

// Neither a ready service nor a test that waits for its crash keeps the event loop alive.
const keepAlive = setInterval(() => {}, 1000);
after(() => clearInterval(keepAlive));

interface Fixture {
  readonly supervisor: Supervisor;
  readonly port: number;
  /** Returns the log of the fake service. */
  readonly log: () => string;
  readonly crash: () => Promise<unknown>;
}

async function createSupervisor(
  t: TestContext,
  faults = {},
  options: SupervisorOptions = {},
): Promise<Fixture> {
  const directory = mkdtempSync(join(tmpdir(), "supervisor-"));
  const FAKE_LOG = join(directory, "log");
  const port = options.port ?? (await freePort());
  const supervisor = new Supervisor({
    command: fakeCommand(port),
    env: { ...process.env, FAULTS: JSON.stringify(faults), FAKE_LOG },
    restartDelayMs: 20,
    client: { retryDelayMs: 10 },
    ...options,
    port,
  });
  t.after(async () => {
    const { pid } = supervisor.status();
    // One that doesn't exit on its own would take half a minute to stop.
    if (pid !== undefined && "ignoresStop" in faults) process.kill(pid, "SIGKILL");
    await supervisor.stop();
    rmSync(directory, { recursive: true });
  });
  const crash = () => fetch(`http://127.0.0.1:${port}/crash`).catch(() => {});
  return { supervisor, port, log: () => readFileSync(FAKE_LOG, "utf8"), crash };
}

function fakeCommand(port: number): string[] {
  return [process.execPath, SERVICE, "--port", String(port)];
}

function isAlive(pid: number): boolean {
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

test("a service starts, embeds, restarts and stops", async (t) => {
  const lines: string[] = [];
  const onProgress = (line: string) => lines.push(line);
  const { supervisor, log, port } = await createSupervisor(t, { slowMs: 300 }, { onProgress });
  assert.equal(supervisor.status().state, "stopped");
  assert.equal(supervisor.status().uptimeMs, undefined);
  const events: string[] = [];
  for (const name of ["ready", "stopped", "crashed", "failed"] as const) {
    supervisor.on(name, () => events.push(name));
  }
  const [status, concurrent] = await Promise.all([supervisor.start(), supervisor.start()]);
  assert.deepEqual(status.pid, concurrent.pid);
  assert.deepEqual([status.state, status.managed], ["ready", true]);
  assert.equal(supervisor.url, `http://127.0.0.1:${port}`);
  const pid = status.pid ?? 0;
  assert.ok(isAlive(pid));
  assert.deepEqual(lines.sort(), ["loading", "still loading"]);
  assert.equal((await supervisor.embed(["ab", "c"]))[0]?.[0], 2);
  assert.equal((await supervisor.embed("abc"))[0], 3);
  assert.equal((await supervisor.client.health()).model, "fake");
  const second = (await supervisor.restart()).pid ?? 0;
  assert.notEqual(second, pid);
  assert.ok(!isAlive(pid));
  await Promise.all([supervisor.stop(), supervisor.stop()]);
  await supervisor.stop();
  assert.equal(supervisor.status().state, "stopped");
  assert.ok(!isAlive(second));
  assert.deepEqual(events, ["ready", "stopped", "ready", "stopped"]);
  assert.match(log(), /^start \d+ --port \d+$/m);
  assert.match(log(), /^(SIGINT|EOF)$/m);
});

for (const { useRay, mode } of [
  { useRay: undefined, mode: " --standalone" },
  { useRay: true, mode: "" },
]) {
  test(`the default command is \`embedserve serve${mode}\``, async (t) => {
    const bin = mkdtempSync(join(tmpdir(), "bin-"));
    t.after(() => rmSync(bin, { recursive: true }));
    const script = `#!/bin/sh\nexec "${process.execPath}" "${SERVICE}" "$@"\n`;
    writeFileSync(join(bin, "embedserve"), script, { mode: 0o755 });
    const FAKE_LOG = join(bin, "log");
    const port = await freePort();
    const env = { ...process.env, PATH: `${bin}:${process.env["PATH"]}`, FAKE_LOG };
    const { supervisor } = await createSupervisor(t, {}, {
      command: undefined,
      config: "my.yaml",
      useRay,
      env,
      port,
    });
    await supervisor.start();
    const log = readFileSync(FAKE_LOG, "utf8");
    assert.ok(log.includes(` serve my.yaml${mode} --port ${port} --until-eof\n`), log);
  });
}

test("the first call starts the service", async (t) => {
  const options = { client: { timeoutMs: 3000 } };
  const { supervisor, log } = await createSupervisor(t, { slowMs: 4000 }, options);
  const both = await Promise.all([supervisor.embed(["a"]), supervisor.embed("b")]);
  assert.equal(both.length, 2);
  assert.equal(log().split("start").length, 2);
});

test("a timeout of the call includes the start", async (t) => {
  const { supervisor } = await createSupervisor(t, { slowMs: 5000 });
  await assert.rejects(supervisor.embed(["a"], { timeoutMs: 200 }), RequestTimeoutError);
  const controller = new AbortController();
  setTimeout(() => controller.abort(), 20);
  const aborted = supervisor.start({ signal: controller.signal });
  await assert.rejects(aborted, (error) => error === controller.signal.reason);
  assert.equal(supervisor.status().state, "starting");
});

test("calls wait for the restart after a crash", async (t) => {
  const { supervisor, crash } = await createSupervisor(t, { slowMs: 100 });
  const first = (await supervisor.start()).pid;
  const attempts: unknown[] = [];
  supervisor.on("restarting", (attempt) => attempts.push(attempt));
  const crashed = once(supervisor, "crashed");
  await crash();
  assert.deepEqual(await crashed, [{ code: 1, signal: null }]);
  assert.equal(supervisor.status().state, "restarting");
  assert.match(supervisor.status().lastError?.message ?? "", /exited with status 1/);
  const [vector] = await supervisor.embed(["abc"]);
  assert.notEqual(vector?.[1], first);
  assert.deepEqual(attempts, [1]);
  assert.equal(supervisor.status().restarts, 1);
});

test("a service that hangs is restarted", async (t) => {
  const { supervisor } = await createSupervisor(t, {}, { unresponsiveTimeoutMs: 500 });
  const first = (await supervisor.start()).pid ?? 0;
  const crashed = once(supervisor, "crashed");
  const ready = once(supervisor, "ready");
  process.kill(first, "SIGSTOP");
  assert.deepEqual(await crashed, [{ code: null, signal: "SIGKILL" }]);
  assert.match(supervisor.status().lastError?.message ?? "", /has not answered for 500 ms/);
  await ready;
  assert.notEqual(supervisor.status().pid, first);
  assert.equal(supervisor.status().restarts, 1);
});

test("a service whose port is closed is restarted a bounded number of times", async (t) => {
  const options = { unresponsiveTimeoutMs: 200, maxRestarts: 1 };
  const { supervisor, log } = await createSupervisor(t, { closesAfterMs: 1500 }, options);
  const failed = once(supervisor, "failed");
  await supervisor.start();
  assert.match((await failed)[0].message, /failed 2 times in a row.*has not answered/s);
  assert.equal(log().split("start").length - 1, 2);
});

test("an error response is an answer", async (t) => {
  const options = { unresponsiveTimeoutMs: 1 };
  const { supervisor } = await createSupervisor(t, { unhealthyAfterMs: 500 }, options);
  const { pid } = await supervisor.start();
  await new Promise((resolve) => setTimeout(resolve, 4000)); // several checks
  assert.equal(await supervisor.client.isHealthy(), false);
  assert.equal(supervisor.status().pid, pid);
});

test("a call whose service crashes is sent once more", async (t) => {
  const { supervisor } = await createSupervisor(t);
  const vectors = await supervisor.embed(["crash", "abc"]);
  assert.equal(vectors[1]?.[0], 3);
});

test("a call that crashes two services rejects", async (t) => {
  const { supervisor, log } = await createSupervisor(t, { alwaysCrashes: true });
  await assert.rejects(supervisor.embed(["crash"]), NetworkError);
  await supervisor.start();
  assert.ok(log().split("start").length >= 3);
});

test("a service that keeps failing stays down until `start`", async (t) => {
  const options = { maxRestarts: 3 };
  const { supervisor, crash, log } = await createSupervisor(t, { failsFrom: 2 }, options);
  await supervisor.start();
  const failed = once(supervisor, "failed");
  await crash();
  await assert.rejects(supervisor.embed(["a"]), (error) => {
    assert.ok(error instanceof ServiceNotRunningError);
    assert.equal(error.code, "SERVICE_NOT_RUNNING");
    assert.match(error.message, /failed 4 times in a row.*status 3.*no such model/s);
    return true;
  });
  assert.ok((await failed)[0] instanceof ServiceNotRunningError);
  assert.equal(supervisor.status().state, "failed");
  assert.equal(log().split("start").length - 1, 4);
  await assert.rejects(supervisor.start(), /no such model/);
  assert.equal(log().split("start").length - 1, 5);
});

test("a first start that fails isn't retried", async (t) => {
  const { supervisor, log } = await createSupervisor(t, { failsFrom: 1 });
  await assert.rejects(supervisor.start(), /exited with status 3.*\nloading\n|no such model/s);
  assert.equal(supervisor.status().state, "failed");
  assert.equal(log().split("start").length - 1, 1);
  const { supervisor: missing } = await createSupervisor(t, {}, { command: ["/no/such/program"] });
  await assert.rejects(missing.start(), (error) => {
    assert.ok(error instanceof ServiceNotRunningError);
    assert.match(error.message, /ENOENT/);
    return true;
  });
});

test("a service that isn't ready in time is stopped", async (t) => {
  const options = { readyTimeoutMs: 3000 };
  const { supervisor, log } = await createSupervisor(t, { neverReady: true }, options);
  await assert.rejects(supervisor.start(), /not ready after 3000 ms/);
  const pid = Number(/start (\d+)/.exec(log())?.[1]);
  assert.ok(!isAlive(pid));
});

test("`stop` during a start rejects the calls that wait for it", async (t) => {
  let hasStarted = false;
  const onProgress = () => (hasStarted = true);
  const { supervisor, log } = await createSupervisor(t, { neverReady: true }, { onProgress });
  const calls = [supervisor.start(), supervisor.embed(["a"])];
  const rejected = Promise.all(calls.map((call) => assert.rejects(call, /was stopped/)));
  await waitFor(() => hasStarted);
  assert.equal(supervisor.status().state, "starting");
  await supervisor.stop();
  await rejected;
  assert.ok(!isAlive(Number(/start (\d+)/.exec(log())?.[1])));
  assert.equal(supervisor.status().state, "stopped");
});

test("`stop` cancels a restart", async (t) => {
  const { supervisor, crash } = await createSupervisor(t, {}, { restartDelayMs: 60_000 });
  await supervisor.start();
  const crashed = once(supervisor, "crashed");
  await crash();
  await crashed;
  const rejected = assert.rejects(supervisor.embed(["a"]), ServiceNotRunningError);
  await supervisor.stop();
  await rejected;
  await assert.doesNotReject(supervisor.start());
});

test("a service that doesn't exit is killed", async (t) => {
  const { supervisor, log } = await createSupervisor(t, { ignoresStop: true });
  const pid = (await supervisor.start()).pid ?? 0;
  const { setTimeout: originalSetTimeout } = globalThis;
  t.mock.method(globalThis, "setTimeout", (work: () => void, ms?: number) =>
    // Shortens the stop timeout and the delay of SIGKILL.
    originalSetTimeout(work, ms === 30_000 ? 200 : ms === 35_000 ? 400 : ms),
  );
  await supervisor.stop();
  assert.ok(!isAlive(pid));
  assert.match(log(), /SIGINT/);
  assert.match(log(), /EOF/);
});

test("a service that runs already is used and never stopped", async (t) => {
  const { port, url } = await startService(t);
  const { supervisor } = await createSupervisor(t, {}, { port });
  const status = await supervisor.start();
  assert.deepEqual([status.state, status.managed, status.pid], ["ready", false, undefined]);
  assert.deepEqual(await supervisor.embed("abc"), vectorOf("abc"));
  await supervisor.stop();
  assert.equal((await fetch(`${url}/health`)).status, 200);
});

test("a supervised service replaces an unmanaged one that stopped", async (t) => {
  const { supervisor: other, port } = await createSupervisor(t);
  await other.start();
  const { supervisor } = await createSupervisor(t, {}, { port });
  await supervisor.start();
  assert.equal(supervisor.status().managed, false);
  await other.stop();
  assert.equal((await supervisor.embed("abc"))[1], supervisor.status().pid);
  assert.equal(supervisor.status().managed, true);
});

test("another program on the port is an error", async (t) => {
  const replies = [
    [404, "no"],
    [200, '{"hello": "world"}'],
  ] as const;
  for (const [status, body] of replies) {
    const { port } = await startService(t, (_, response) => send(response, status, body));
    const { supervisor } = await createSupervisor(t, {}, { port });
    await assert.rejects(supervisor.start(), /in use by another program/);
    assert.equal((await fetch(`http://127.0.0.1:${port}`)).status, status);
  }
});

test("a network error of a running service is not retried by the supervisor", async (t) => {
  const failingFetch = async () => {
    throw new TypeError("fetch failed");
  };
  const { supervisor } = await createSupervisor(t);
  await supervisor.start();
  t.mock.method(globalThis, "fetch", failingFetch);
  await assert.rejects(supervisor.embed(["a"]), NetworkError);
});

for (const exit of ["end", "exit", "throw", "kill"]) {
  test(`the service doesn't outlive the program: ${exit}`, async () => {
    const args = [join(FAKES, "program.mjs"), SERVICE, String(await freePort()), exit];
    const program = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "ignore"] });
    let text = "";
    program.stdout.on("data", (chunk) => (text += chunk));
    await once(program, "exit");
    const pid = Number.parseInt(text, 10);
    assert.ok(pid > 0, text);
    // Only an empty event loop allows a graceful stop.
    assert.equal(text.includes("stopped"), exit === "end");
    await waitFor(() => !isAlive(pid));
  });
}
