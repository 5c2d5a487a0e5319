/** The real service without a trained model, for tests that start it. */

import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { TestContext } from "node:test";

const isInstalled = spawnSync("embedserve", ["serve", "--help"]).status === 0;

/** The options of tests that need the command `embedserve`. */
export const REAL = { skip: isInstalled ? false : "the package embedserve isn't installed" };

/**
 * Returns the configuration file of a service with hashed vectors of 64 dimensions.
 * @param hasCacheServer true: the service starts a cache server, whose files are in `directory`
 */
export function createConfig(
  t: TestContext,
  hasCacheServer = false,
): { config: string; directory: string } {
  const directory = mkdtempSync(join(tmpdir(), "standalone-"));
  t.after(() => rmSync(directory, { recursive: true }));
  const args = {
    model: { name: "hashing", source: "hashing:64" },
    cache: hasCacheServer ? { data_dir: join(directory, "cache") } : { url: "none" },
  };
  const application = { name: "embedserve", import_path: "serve_app.app:build", args };
  const config = join(directory, "config.yaml");
  const http_options = { host: "127.0.0.1" };
  writeFileSync(config, JSON.stringify({ http_options, applications: [application] }));
  return { config, directory };
}

export function isAlive(pid = 0): boolean {
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
}

/** Returns the processes that name a directory, and the zombies of this process. */
export function processesOf(directory: string): string[] {
  const lines = execFileSync("ps", ["-ww", "-eo", "ppid,stat,args"], { encoding: "utf8" }).split("\n");
  const isZombie = new RegExp(`^\\s*${process.pid}\\s+Z`);
  return lines.filter((line) => line.includes(directory) || isZombie.test(line));
}

export async function waitFor(condition: () => boolean): Promise<void> {
  for (let i = 0; i < 600 && !condition(); i++) {
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  assert.ok(condition());
}
