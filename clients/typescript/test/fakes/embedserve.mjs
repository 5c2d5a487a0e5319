/** A fake of the command `embedserve`: `serve` fails, and `stdio --local` is a model. */

import { createInterface } from "node:readline";

const [, , command] = process.argv;
console.error(process.argv.slice(2).join(" "));
const write = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);
const { LOCAL_SPACE: space = "family-fp32" } = process.env;

if (command === "serve" || process.env.LOCAL_FAILS) {
  console.error(`no memory for ${process.argv.slice(2).join(" ")}`);
  process.exit(1);
}
write({ status: "ready" });
createInterface({ input: process.stdin }).on("line", (line) => {
  const { id, command, params } = JSON.parse(line);
  if (command === "encode-query") return write({ id, result: [1] });
  const vectors = params.texts.map((text) => [text.length, 0.5]);
  write({ id, result: { vectors, space, model: process.argv.slice(3).join(" ") } });
});
