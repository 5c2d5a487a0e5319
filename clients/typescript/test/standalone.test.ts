/** The supervisor and the worker with the real service; skipped without the command `embedserve`. */

import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { after, test, type TestContext } from "node:test";
import { fileURLToPath } from "node:url";
import { StdioWorker, Supervisor } from "embedserve-client/node";
import { freePort } from "./service.js";

const PROGRAM = fileURLToPath(new URL("../../test/fakes/standalone-program.mjs", import.meta.url));
const isInstalled = spawnSync("embedserve", ["serve", "--help"]).status === 0;
const options = { skip: isInstalled ? false : "the package embedserve isn't installed" };

// A ready service doesn't keep the event loop alive.
const keepAlive = setInterval(() => {}, 1000);
after(() => clearInterval(keepAlive));

/** Returns the configuration file of a service without a trained model and without a cache server. */
function createConfig(t: TestContext): { config: string; directory: string } {
  const directory = mkdtempSync(join(tmpdir(), "standalone-"));
  t.after(() => rmSync(directory, { recursive: true }));
  const args = {
    model: { name: "hashing", source: "hashing:64" },
    cache: { url: "none" },
  };
  const application = { name: "embedserve", import_path: "serve_app.app:build", args };
  const config = join(directory, "config.yaml");
  const http_options = { host: "127.0.0.1" };
  writeFileSync(config, JSON.stringify({ http_options, applications: [application] }));
  return { config, directory };
}

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
}

async function waitFor(condition: () => boolean): Promise<void> {
  for (let i = 0; i < 600 && !condition(); i++) {
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  assert.ok(condition());
}

test("a killed standalone service is restarted", options, async (t) => {
  const lines: string[] = [];
  const { config } = createConfig(t);
  const supervisor = new Supervisor({
    port: await freePort(),
    config,
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
});

test("a standalone service ends with a program that is killed", options, async (t) => {
  const { config } = createConfig(t);
  const args = [PROGRAM, config, String(await freePort())];
  const program = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "inherit"] });
  const [line] = (await once(createInterface(program.stdout), "line")) as [string];
  const pid = Number(line);
  assert.ok(isAlive(pid), line);
  program.kill("SIGKILL");
  await once(program, "exit");
  await waitFor(() => !isAlive(pid));
});

test("a worker with --start runs a standalone service", options, async (t) => {
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
