/** The TypeScript compiler of this package, as a function. */

import { spawnSync } from "node:child_process";
import { createRequire } from "node:module";

const tsc = createRequire(import.meta.url).resolve("typescript/bin/tsc");

/** Compiles; ends this program when it can't. */
export function compile(...args) {
  const { status } = spawnSync(process.execPath, [tsc, ...args], { stdio: "inherit" });
  if (status !== 0) process.exit(status ?? 1);
}
