/** Stands for `embedserve stdio`. What it does wrong is told by FAKE, a JSON object. */

import { appendFileSync, readFileSync } from "node:fs";
import { createInterface } from "node:readline";

const { FAKE = "{}", FAKE_LOG } = process.env;
const told = JSON.parse(FAKE);
const [, , mode, ...given] = process.argv;
const text = given.at(-1);
if (FAKE_LOG) appendFileSync(FAKE_LOG, `start ${mode ?? "server"}\n`);
const starts = FAKE_LOG ? readFileSync(FAKE_LOG, "utf8").split("start server").length - 1 : 1;
const say = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);
const vector = (one) => [one.length, process.pid, 0.1];
console.error("loading");

if (mode === "encode-query") {
  console.log("Some library says hello");
  if (told.oneShotFails) {
    say({ error: "no model" });
    process.exitCode = 1;
  } else if (given[0].startsWith("-") && given[0] !== "--") {
    console.error(`unrecognized arguments: ${given[0]}`);
    process.exitCode = 2;
  } else say(vector(text));
} else if (mode === "encode-batch") {
  let input = "";
  process.stdin.on("data", (chunk) => (input += chunk));
  process.stdin.on("end", () => {
    if (told.oneShotFails) {
      console.error("no memory");
      process.exitCode = 9;
    } else say({ result: JSON.parse(input).map(vector) });
  });
} else {
  if (told.failsFrom && starts >= told.failsFrom) {
    console.error("broken");
    process.exit(4);
  }
  if (told.stubborn) process.on("SIGINT", () => {});
  const answer = ({ id, command, params }) => {
    const [first] = params.texts ?? [params.text];
    if (first === "die" && (starts === 1 || told.diesAlways)) process.exit(1);
    if (first === "silence") return;
    if (first === "error") return say({ id, error: "The text is bad." });
    if (first === "wrong") return say({ id, result: "vectors" });
    if (first === "few") return say({ id, result: [] });
    const result = command === "encode-query" ? vector(params.text) : params.texts.map(vector);
    const reply = () => say({ id, result });
    if (first.startsWith("slow")) return void setTimeout(reply, 100);
    reply();
  };
  if (!told.neverReady) {
    if (told.garbage) {
      console.log('Loading weights: 100%|####|\n{"id": 7}\n[]\nnull');
      say({ id: "nobody", result: [1] });
      process.stdout.write('{"status": ');
      setTimeout(() => process.stdout.write('"ready"}\n'), 30);
    } else say({ status: "ready" });
  }
  const listen = () =>
    createInterface({ input: process.stdin }).on("line", (line) => answer(JSON.parse(line)));
  // Reads nothing for a while, so that the pipe is full.
  if (told.slowReader) setTimeout(listen, 200);
  else listen();
  if (told.stubborn || told.neverReady) setInterval(() => {}, 1000);
}
