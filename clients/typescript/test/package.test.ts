/** The package as users get it: packed, installed offline, and loaded as ESM and by `require`. */

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";

const ROOT = fileURLToPath(new URL("../../", import.meta.url));
const EXPORTS = [
  ...["Client", "EmbedError", "HTTPError", "InvalidURLError", "NetworkError", "ParseError"],
  ...["RateLimitError", "RequestTimeoutError", "ServerError", "ServiceNotRunningError"],
  ...["SpaceConflictError", "SpaceMismatchError", "WorkerError"],
];
const NODE_EXPORTS = [...EXPORTS, "LocalModel", "StdioWorker", "Supervisor"].sort();
const COMPAT_EXPORTS = [
  ...["HelpEmbeddingService", "MAX_RESTART_ATTEMPTS", "NomicEmbedder", "PythonSidecarClient"],
  ...["PythonSidecarError", "PythonSidecarService", "REQUEST_TIMEOUT_MS", "RESTART_BACKOFF_MS"],
];
/** The limit of the packed package. */
const MAX_BYTES = 27_500;
const directory = mkdtempSync(join(tmpdir(), "package-"));
const run = (program: string, ...args: string[]) =>
  execFileSync(program, args, {
    cwd: directory,
    encoding: "utf8",
    shell: process.platform === "win32",
  });
const runNode = (file: string, source: string) => {
  writeFileSync(join(directory, file), source);
  return JSON.parse(run(process.execPath, file)) as unknown;
};

before(() => {
  run("npm", "pack", ROOT, "--ignore-scripts", "--silent");
  const [tarball = ""] = readdirSync(directory).filter((name) => name.endsWith(".tgz"));
  writeFileSync(join(directory, "package.json"), "{}");
  run("npm", "install", `./${tarball}`, "--offline", "--no-audit", "--no-fund", "--silent");
});
after(() => rmSync(directory, { recursive: true }));

test("import", () => {
  const names = runNode("names.mjs", `
    import * as client from "embedserve-client";
    import * as node from "embedserve-client/node";
    import * as compat from "embedserve-client/compat";
    console.log(JSON.stringify([client, node, compat].map((module) => Object.keys(module))));`);
  assert.deepEqual(names, [EXPORTS, NODE_EXPORTS, COMPAT_EXPORTS]);
});

test("CommonJS modules can require the ES modules", () => {
  const names = runNode("names.cjs", `
    const names = (path) => Object.keys(require(path)).sort();
    console.log(JSON.stringify([names("embedserve-client"), names("embedserve-client/node")]));`);
  assert.deepEqual(names, [EXPORTS, NODE_EXPORTS]);
});

test("all entry points share one class of each name", () => {
  const isSame = runNode("same.mjs", `
    import { createRequire } from "node:module";
    import * as client from "embedserve-client";
    import * as node from "embedserve-client/node";
    const require = createRequire(import.meta.url);
    const others = [node, require("embedserve-client"), require("embedserve-client/node")];
    console.log(others.every(({ EmbedError }) => EmbedError === client.EmbedError));`);
  assert.equal(isSame, true);
});

test("the packed package is small", () => {
  const [tarball = ""] = readdirSync(directory).filter((name) => name.endsWith(".tgz"));
  const { size } = statSync(join(directory, tarball));
  assert.ok(size < MAX_BYTES, `${size} bytes`);
});

/** Returns the sources of a module and of all modules that it imports. */
function readModules(path: string, sources = new Map<string, string>()): Map<string, string> {
  if (sources.has(path)) return sources;
  const source = readFileSync(path, "utf8");
  sources.set(path, source);
  for (const [, specifier = ""] of source.matchAll(/\bfrom ?"([^"]+)"/g)) {
    assert.match(specifier, /^\.\//, `${path} imports ${specifier}`);
    readModules(join(dirname(path), specifier), sources);
  }
  return sources;
}

test("a browser can load the entry point: it imports only modules next to it", () => {
  const sources = readModules(join(ROOT, "dist/index.js"));
  assert.ok(sources.size > 1);
  for (const [path, source] of sources) assert.doesNotMatch(source, /\brequire\(/, path);
});

test("there are no dependencies and no unneeded files", () => {
  const { dependencies } = JSON.parse(readFileSync(join(ROOT, "package.json"), "utf8"));
  assert.equal(dependencies, undefined);
  const files = readdirSync(join(directory, "node_modules/embedserve-client"));
  assert.deepEqual(files.sort(), ["README.md", "dist", "package.json"]);
  assert.doesNotMatch(readFileSync(join(ROOT, "package-lock.json"), "utf8"), /"resolved"/);
});
