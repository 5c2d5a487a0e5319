/** Builds the package, compiles its types and tests, and runs these. */

import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { compile } from "./tsc.mjs";

process.chdir(fileURLToPath(new URL("..", import.meta.url)));
await import("./build.mjs");

const types = ["--noEmit", "--strict", "--exactOptionalPropertyTypes", "--target", "ES2022"];
const forNode = [...types, "--lib", "ES2022", "--types", "node"];
compile(...forNode, "--module", "NodeNext", "test/types.ts", "test/types-commonjs.cts");
compile(...forNode, "--module", "Node16", "test/types.ts", "test/types-commonjs.cts");
compile("-p", "tsconfig.browser.json");

compile("-p", "tsconfig.test.json");
// Most of what they do is wait.
const run = ["--test", "--test-concurrency=3", "build/tests/test/"];
const { status } = spawnSync(process.execPath, run, { stdio: "inherit" });
process.exit(status ?? 1);
