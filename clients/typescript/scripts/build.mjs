/**
 * Builds dist/, one file for each entry point.
 *
 * Node gets CommonJS, and ES modules that hand its exports on, so that there is one `EmbedError` in
 * a program however it is loaded. Everybody else gets an ES module.
 */

import { cpSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { flatten, imported, modules } from "./flatten.mjs";
import { compile } from "./tsc.mjs";

process.chdir(fileURLToPath(new URL("..", import.meta.url)));
for (const folder of ["build/flat", "dist"]) rmSync(folder, { recursive: true, force: true });
mkdirSync("build/flat/cjs", { recursive: true });
const write = (name, text) => writeFileSync(`build/flat/${name}`, text);

const BROWSER = "src/index.ts";
const NODE = "src/node/index.ts";
const core = modules(BROWSER).filter((path) => path !== BROWSER);
const processes = modules(NODE).filter((path) => path !== NODE && path.startsWith("src/node/"));
/** What some modules import from others, by name. */
const names = (paths, others) => {
  const found = paths.flatMap(imported).filter(({ from }) => others.includes(from));
  return new Set(found.flatMap((one) => one.names));
};
write("browser.ts", flatten(core, names([BROWSER], core)));
write("cjs/core.ts", flatten(core, names([BROWSER, ...processes], core)));
write("cjs/processes.ts", flatten(processes, names([NODE], processes), "./core.js"));

// The lists of what is exported stay as they are, but for the places.
for (const [folder, place] of [["", "./cjs"], ["cjs/", "."]]) {
  const moved = (entry, file) =>
    readFileSync(entry, "utf8").replace(/"\.\/[^"]*"/g, `"${place}/${file}.js"`);
  write(`${folder}index.ts`, moved(BROWSER, "core"));
  write(`${folder}node.ts`, moved(NODE, "processes").replace('"../index.js"', '"./index.js"'));
}
// This alone makes the code and the types beside it CommonJS, for Node and for the compiler.
write("cjs/package.json", '{ "type": "commonjs" }\n');
write(
  "tsconfig.json",
  JSON.stringify({
    extends: "../../tsconfig.json",
    compilerOptions: { rootDir: ".", outDir: "../../dist", verbatimModuleSyntax: false },
    include: ["."],
  }),
);
// Comments go with the types, where editors look for them.
compile("-p", "build/flat", "--declaration", "false", "--removeComments");
compile("-p", "build/flat", "--emitDeclarationOnly", "--stripInternal");
rmSync("dist/browser.d.ts");
cpSync("build/flat/cjs/package.json", "dist/cjs/package.json");
