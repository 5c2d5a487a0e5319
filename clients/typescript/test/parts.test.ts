/** The parts that can be tried alone. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { bytesOfBase64, floatsOfBase64 } from "../src/base64.js";
import { ParseError } from "../src/errors.js";
import { Lines } from "../src/node/lines.js";
import { Restarts } from "../src/node/restarts.js";
import { comparable } from "../src/space.js";
import { places } from "../src/wire.js";
import { base64Of } from "./service.js";

const FLOATS = Float32Array.from({ length: 384 }, (_, i) => Math.fround(Math.sin(i) / 7));

/** As in a place that has only what `present` names. */
function without<T>(missing: string[], work: () => T): T {
  const kept = missing.map((name) => Object.getOwnPropertyDescriptor(globalThis, name));
  const nothing = { value: undefined, configurable: true };
  for (const name of missing) Object.defineProperty(globalThis, name, nothing);
  try {
    return work();
  } finally {
    missing.forEach((name, i) => Object.defineProperty(globalThis, name, kept[i] ?? {}));
  }
}

test("base64 by each of its decoders, and in each order of bytes", () => {
  const text = base64Of(FLOATS);
  for (const isLittle of [true, false]) {
    assert.deepEqual(floatsOfBase64(text, isLittle), FLOATS);
    without(["Buffer"], () => assert.deepEqual(floatsOfBase64(text, isLittle), FLOATS));
  }
  const { from } = Buffer;
  const decode = (given: string) => Uint8Array.from(from(given, "base64"));
  Object.defineProperty(Uint8Array, "fromBase64", { value: decode, configurable: true });
  try {
    without(["Buffer", "atob"], () => assert.deepEqual(floatsOfBase64(text), FLOATS));
  } finally {
    delete (Uint8Array as { fromBase64?: unknown }).fromBase64;
  }
});

test("bytes of any number, and what isn't base64", () => {
  for (let n = 0; n < 9; n++) {
    const bytes = Uint8Array.from({ length: n }, (_, i) => 250 - i);
    const text = Buffer.from(bytes).toString("base64");
    assert.deepEqual(bytesOfBase64(text), bytes);
    without(["Buffer"], () => assert.deepEqual(bytesOfBase64(text), bytes));
  }
  for (const wrong of ["AAA!", "A", "AAAA-=", "ä"]) {
    assert.throws(() => bytesOfBase64(wrong), ParseError, wrong);
    without(["Buffer"], () => assert.throws(() => bytesOfBase64(wrong), ParseError, wrong));
  }
});

test("vectors don't share their memory", () => {
  const [one, other] = [floatsOfBase64(base64Of(FLOATS)), floatsOfBase64(base64Of(FLOATS))];
  assert.notEqual(one.buffer, other.buffer);
  assert.equal(one.buffer.byteLength, 4 * 384);
});

test("places of texts", () => {
  assert.deepEqual(places(""), []);
  assert.deepEqual(places("0,4-7"), [0, 4, 5, 6, 7]);
  assert.deepEqual(places("3, 5-5"), [3, 5]);
  for (const wrong of ["a", "1,,2", "-1", "1-"]) assert.throws(() => places(wrong), ParseError);
});

test("spaces that can be compared", () => {
  assert.ok(comparable("a-int8", "a-int8"));
  assert.ok(!comparable("a-int8", "a-uint8"));
  for (const wrong of ["a", "-fp32", "a-"]) {
    assert.throws(() => comparable("a-fp32", wrong), ParseError);
  }
});

test("lines, however they are cut", () => {
  const text = "ä\n\n世界 🌍\r\nend";
  const bytes = Buffer.from(text);
  for (let size = 1; size <= bytes.length; size++) {
    const found: string[] = [];
    const lines = new Lines((line) => found.push(line));
    for (let i = 0; i < bytes.length; i += size) lines.push(bytes.subarray(i, i + size));
    lines.end();
    assert.deepEqual(found, ["ä", "", "世界 🌍", "end"]);
  }
});

test("a line that is too long is dropped, and the next one isn't", () => {
  const found: string[] = [];
  let dropped = 0;
  const lines = new Lines((line) => found.push(line), () => dropped++, 10);
  lines.push(Buffer.from("0123456"));
  lines.push(Buffer.from("789abc"));
  lines.push(Buffer.from("def\n0123456789\nx"));
  lines.push(Buffer.from("y\n"));
  assert.deepEqual(found, ["0123456789", "xy"]);
  assert.equal(dropped, 1);
});

test("restarts wait longer each time, and are counted anew after a steady minute", () => {
  const restarts = new Restarts(2000, 5);
  const waits = () => Array.from({ length: 6 }, () => restarts.next(0));
  assert.deepEqual(waits(), [2000, 4000, 8000, 16_000, 30_000, undefined]);
  assert.equal(restarts.next(59_000), undefined);
  assert.equal(restarts.next(61_000), 2000);
  assert.equal(restarts.inRow, 1);
});
