/** Fails if the packed package exceeds its size limit. */

import { execFileSync } from "node:child_process";

const MAX_BYTES = 27_500;
const npm = process.platform === "win32" ? "npm.cmd" : "npm";
const output = execFileSync(npm, ["pack", "--dry-run", "--json", "--ignore-scripts"], {
  encoding: "utf8",
});
// A list with one package, or, since npm 12, an object.
const [pack] = Object.values(JSON.parse(output));
console.log(`${pack.size} bytes packed, ${pack.unpackedSize} unpacked, ${pack.entryCount} files`);
if (pack.size > MAX_BYTES) {
  console.error(`The package is larger than ${MAX_BYTES} bytes.`);
  process.exit(1);
}
