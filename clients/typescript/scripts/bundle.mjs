/** Bundles the JavaScript of the package, and the declarations of what it exports. */

import { readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { build } from "esbuild";

/** The folders below `dist` with an `index.js`, each after those that it imports. */
const FOLDERS = ["", "node", "compat"];
const IMPORT = /^(?:im|ex)port (?:type )?\{([^}]*)\} from "([^"]+)";\n/gm;

await build({
  entryPoints: FOLDERS.map((folder) => join("src", folder, "index.ts")),
  outdir: "dist",
  outbase: "src",
  bundle: true,
  // The entry points share their modules, so that each class exists once.
  splitting: true,
  format: "esm",
  platform: "neutral",
  external: ["node:*"],
  target: "es2022",
  minify: true,
  // Users see the names of classes and functions in stack traces.
  keepNames: true,
  logLevel: "warning",
});

const used = new Set();
for (const folder of FOLDERS) addUsed(join("dist", folder, "index.d.ts"));
for (const folder of FOLDERS) joinDeclarations(join("dist", folder));

function findFiles(extension) {
  const files = readdirSync("dist", { recursive: true }).map((file) => join("dist", file));
  return files.filter((file) => file.endsWith(extension));
}

/** Adds a declaration file and all that it imports to `used`. */
function addUsed(file) {
  if (used.has(file)) return;
  used.add(file);
  for (const [, , specifier] of readFileSync(file, "utf8").matchAll(IMPORT)) {
    if (specifier.startsWith(".")) addUsed(join(file, "..", specifier.replace(/js$/, "d.ts")));
  }
}

/** Joins the used declarations of a folder into `types.d.ts`, from which `index.d.ts` exports. */
function joinDeclarations(folder) {
  const index = join(folder, "index.d.ts");
  const names = new Map();
  let types = "";
  for (const file of findFiles(".d.ts").filter((file) => join(file, "..") === folder)) {
    if (file === index) continue;
    const source = readFileSync(file, "utf8");
    rmSync(file);
    if (!used.has(file)) continue;
    for (const [, list, specifier] of source.matchAll(IMPORT)) {
      if (specifier.startsWith("./")) continue;
      const target = specifier.replace(/[^/]+\.js$/, "types.js");
      if (!names.has(target)) names.set(target, new Set());
      for (const name of list.split(",")) names.get(target).add(name.replace(/\btype /, "").trim());
    }
    // Without the comment on the module.
    types += source.replace(/^\/\*\*.*?\*\/\n/s, "").replaceAll(IMPORT, "");
  }
  const imports = [...names].map(
    ([target, list]) => `import { ${[...list].filter(Boolean).join(", ")} } from "${target}";\n`,
  );
  writeFileSync(join(folder, "types.d.ts"), imports.join("") + types);
  const exports = readFileSync(index, "utf8").replaceAll(/"\.\/[\w-]+\.js"/g, '"./types.js"');
  writeFileSync(index, exports);
}
