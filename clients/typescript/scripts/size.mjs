/** Fails when the package has grown too large to be taken along without a thought. */

import { execFileSync } from "node:child_process";

const MOST_BYTES = 20_000;
const npm = process.platform === "win32" ? "npm.cmd" : "npm";
const told = execFileSync(npm, ["pack", "--dry-run", "--json", "--ignore-scripts"], {
  encoding: "utf8",
});
// A list of one package, or since npm 12 an object by names.
const [pack] = Object.values(JSON.parse(told));
console.log(`${pack.size} bytes packed, ${pack.unpackedSize} unpacked, ${pack.entryCount} files`);
if (pack.size >= MOST_BYTES) {
  console.error(`That is ${MOST_BYTES} or more.`);
  process.exit(1);
}
