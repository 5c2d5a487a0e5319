/** A fake of `embedserve stdio`. FAULTS, a JSON object, selects its faults. */

import { appendFileSync, readFileSync } from "node:fs";
import { createInterface } from "node:readline";

const { FAULTS = "{}", FAKE_LOG } = process.env;
const faults = JSON.parse(FAULTS);
const [, , mode, ...args] = process.argv;
const text = args.at(-1);
if (FAKE_LOG) appendFileSync(FAKE_LOG, `start ${mode ?? "server"}\n`);
const starts = FAKE_LOG ? readFileSync(FAKE_LOG, "utf8").split("start server").length - 1 : 1;
const write = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);
const vectorOf = (text) => [text.length, process.pid, 0.1];
console.error("loading");
if (faults.needsMode && !["server", "encode-query", "encode-batch"].includes(mode)) {
  console.error(`There is no mode ${mode}.`);
  process.exit(2);
}

if (mode === "encode-query") {
  console.log("Output of a library");
  if (faults.oneShotFails) {
    write({ error: "no model" });
    process.exitCode = 1;
  } else if (args[0].startsWith("-") && args[0] !== "--") {
    console.error(`unrecognized arguments: ${args[0]}`);
    process.exitCode = 2;
  } else write(vectorOf(text));
} else if (mode === "encode-batch") {
  let input = "";
  process.stdin.on("data", (chunk) => (input += chunk));
  process.stdin.on("end", () => {
    if (faults.oneShotFails) {
      console.error("no memory");
      process.exitCode = 9;
    } else write({ result: JSON.parse(input).map(vectorOf) });
  });
} else {
  if (faults.failsFrom && starts >= faults.failsFrom) {
    console.error("broken");
    process.exit(4);
  }
  if (faults.ignoresStop) process.on("SIGINT", () => {});
  const handle = ({ id, command, params }) => {
    const [first] = params.texts ?? [params.text];
    if (first === "die" && (starts === 1 || faults.alwaysCrashes)) process.exit(1);
    if (first === "silence") return;
    if (first === "error") return write({ id, error: "The text is bad." });
    if (first === "wrong") return write({ id, result: "vectors" });
    if (first === "few") return write({ id, result: [] });
    const result = command === "encode-query" ? vectorOf(params.text) : params.texts.map(vectorOf);
    const reply = () => write({ id, result });
    if (first.startsWith("slow")) return void setTimeout(reply, 100);
    reply();
  };
  if (!faults.neverReady) {
    if (faults.garbage) {
      console.log('Loading weights: 100%|####|\n{"id": 7}\n[]\nnull');
      write({ id: "unknown", result: [1] });
      process.stdout.write('{"status": ');
      setTimeout(() => process.stdout.write('"ready"}\n'), 30);
    } else write({ status: "ready" });
  }
  const listen = () =>
    createInterface({ input: process.stdin }).on("line", (line) => handle(JSON.parse(line)));
  // Reads nothing at first, so the pipe fills up.
  if (faults.slowReader) setTimeout(listen, 200);
  else listen();
  if (faults.ignoresStop || faults.neverReady) setInterval(() => {}, 1000);
}
