/** The supervisor and the worker with the real service; skipped if it isn't installed. */

import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { after, test } from "node:test";
import { fileURLToPath } from "node:url";
import { StdioWorker, Supervisor } from "embedserve-client/node";
import { freePort } from "./service.js";
import { createConfig, isAlive, processesOf, REAL, waitFor } from "./standalone-config.js";

const PROGRAM = fileURLToPath(new URL("../../test/fakes/standalone-program.mjs", import.meta.url));

// A ready service doesn't keep the event loop alive.
const keepAlive = setInterval(() => {}, 1000);
after(() => clearInterval(keepAlive));

test("a killed standalone service is restarted", REAL, async (t) => {
  const lines: string[] = [];
  const { config, directory } = createConfig(t);
  const TMPDIR = join(directory, "tmp");
  mkdirSync(TMPDIR);
  const supervisor = new Supervisor({
    port: await freePort(),
    config,
    env: { ...process.env, TMPDIR },
    restartDelayMs: 20,
    onProgress: (line) => lines.push(line),
  });
  t.after(() => supervisor.stop());
  const before = await supervisor.embed("a text");
  assert.equal(before.length, 64);
  assert.ok(lines.some((line) => line.includes("hashing")), lines.join("\n"));
  const pid = supervisor.status().pid ?? 0;
  const restarted = once(supervisor, "ready");
  process.kill(pid, "SIGKILL");
  await restarted;
  const { pid: newPid = 0, restarts } = supervisor.status();
  assert.equal(restarts, 1);
  assert.notEqual(newPid, pid);
  assert.deepEqual(await supervisor.embed("a text"), before);
  await supervisor.stop();
  assert.ok(!isAlive(newPid));
  assert.deepEqual(readdirSync(TMPDIR), []);
});

for (const end of ["exit", "SIGTERM", "SIGKILL", "terminate"] as const) {
  test(`a program that ends by ${end} leaves no process behind`, REAL, async (t) => {
    const { config, directory } = createConfig(t, true);
    const before = processesOf(directory);
    const args = [PROGRAM, config, String(await freePort()), end];
    const program = spawn(process.execPath, args, { stdio: ["pipe", "pipe", "inherit"] });
    t.after(() => program.kill("SIGKILL"));
    const lines = createInterface(program.stdout)[Symbol.asyncIterator]();
    const pid = Number((await lines.next()).value);
    assert.ok(isAlive(pid), String(pid));
    // The service and its cache server.
    await waitFor(() => processesOf(directory).length >= before.length + 3);
    if (end.startsWith("SIG")) program.kill(end as NodeJS.Signals);
    else program.stdin.write("end\n");
    if (end === "terminate") {
      assert.equal((await lines.next()).value, "terminated");
      await waitFor(() => processesOf(directory).filter(isService).length === 0);
      // The program goes on, without a zombie.
      const children = execFileSync("ps", ["-ww", "-eo", "ppid,pid,stat,args"], { encoding: "utf8" });
      const isChild = new RegExp(`^\\s*${program.pid}\\s`, "m");
      assert.doesNotMatch(children, isChild);
      program.kill("SIGKILL");
    }
    await once(program, "exit");
    await waitFor(() => processesOf(directory).length === before.length);
  });
}

/** The program itself names the directory as well. */
function isService(line: string): boolean {
  return !line.includes("standalone-program");
}

test("a worker with --start runs a standalone service", REAL, async (t) => {
  const { config, directory } = createConfig(t);
  const url = `http://127.0.0.1:${await freePort()}`;
  const worker = new StdioWorker({
    command: ["embedserve", "stdio", "--start", config],
    env: { ...process.env, EMBEDSERVE_URL: url, TMPDIR: directory },
  });
  assert.equal((await worker.encodeQuery("a text")).length, 64);
  assert.equal((await fetch(`${url}/health`)).status, 200);
  await worker.stop();
  await assert.rejects(fetch(`${url}/health`));
});
