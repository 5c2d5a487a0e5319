/** The package as others get it: packed, installed without a network, and loaded both ways. */

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";

const ROOT = fileURLToPath(new URL("../../../", import.meta.url));
const EXPORTS = [
  ...["EmbedClient", "EmbedError", "HttpError", "NetworkError", "OverloadedError", "ParseError"],
  ...["SidecarError", "SpaceMismatchError", "TimeoutError", "WorkerError"],
];
const OF_NODE = [...EXPORTS, "EmbedSidecar", "StdioWorker"].sort();
const folder = mkdtempSync(join(tmpdir(), "package-"));
const run = (program: string, ...args: string[]) =>
  execFileSync(program, args, {
    cwd: folder,
    encoding: "utf8",
    shell: process.platform === "win32",
  });
const node = (file: string, source: string) => {
  writeFileSync(join(folder, file), source);
  return JSON.parse(run(process.execPath, file)) as unknown;
};

before(() => {
  run("npm", "pack", ROOT, "--ignore-scripts", "--silent");
  const [tarball = ""] = readdirSync(folder).filter((name) => name.endsWith(".tgz"));
  writeFileSync(join(folder, "package.json"), "{}");
  run("npm", "install", `./${tarball}`, "--offline", "--no-audit", "--no-fund", "--silent");
});
after(() => rmSync(folder, { recursive: true }));

test("import gives what is exported, and nothing else", () => {
  const names = node("names.mjs", `
    import * as all from "embedserve-client";
    import * as node from "embedserve-client/node";
    console.log(JSON.stringify([Object.keys(all), Object.keys(node)]));`);
  assert.deepEqual(names, [EXPORTS, OF_NODE]);
});

test("require gives the same", () => {
  const names = node("names.cjs", `
    const names = (path) => Object.keys(require(path)).sort();
    console.log(JSON.stringify([names("embedserve-client"), names("embedserve-client/node")]));`);
  assert.deepEqual(names, [EXPORTS, OF_NODE]);
});

test("there is one of each class in a program, however it is loaded", () => {
  const same = node("same.mjs", `
    import { createRequire } from "node:module";
    import * as all from "embedserve-client";
    import * as node from "embedserve-client/node";
    const require = createRequire(import.meta.url);
    const others = [node, require("embedserve-client"), require("embedserve-client/node")];
    console.log(others.every((one) => one.EmbedError === all.EmbedError));`);
  assert.equal(same, true);
});

test("what browsers get exports the same, and asks for nothing of Node", async () => {
  const source = readFileSync(join(ROOT, "dist/browser.js"), "utf8");
  assert.doesNotMatch(source, /\bimport\b|\brequire\b|process\./);
  const browser: unknown = await import(new URL("../../../dist/browser.js", import.meta.url).href);
  assert.deepEqual(Object.keys(browser as object), EXPORTS);
});

test("it depends on nothing, and its files are those that are needed", () => {
  const { dependencies } = JSON.parse(readFileSync(join(ROOT, "package.json"), "utf8"));
  assert.equal(dependencies, undefined);
  const files = readdirSync(join(folder, "node_modules/embedserve-client"));
  assert.deepEqual(files.sort(), ["README.md", "dist", "package.json"]);
  assert.doesNotMatch(readFileSync(join(ROOT, "package-lock.json"), "utf8"), /"resolved"/);
});
