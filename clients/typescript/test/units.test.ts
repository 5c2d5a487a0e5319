/** Internal modules that need no service and no process. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { decodeBase64, decodeFloat32, encodeBase64 as encodeBytes } from "../src/base64.js";
import { ParseError } from "../src/errors.js";
import { LineSplitter } from "../src/node/line-splitter.js";
import { RestartBackoff } from "../src/node/restart-backoff.js";
import { isComparable } from "../src/space.js";
import { parsePositions } from "../src/wire.js";
import { encodeBase64 } from "./service.js";

const FLOATS = Float32Array.from({ length: 384 }, (_, i) => Math.fround(Math.sin(i) / 7));

/** Runs `work` without some global objects. */
function without<T>(names: string[], work: () => T): T {
  const descriptors = names.map((name) => Object.getOwnPropertyDescriptor(globalThis, name));
  const absent = { value: undefined, configurable: true };
  for (const name of names) Object.defineProperty(globalThis, name, absent);
  try {
    return work();
  } finally {
    names.forEach((name, i) => Object.defineProperty(globalThis, name, descriptors[i] ?? {}));
  }
}

test("base64 with each decoder, and in each byte order", () => {
  const text = encodeBase64(FLOATS);
  for (const isLittleEndian of [true, false]) {
    assert.deepEqual(decodeFloat32(text, isLittleEndian), FLOATS);
    without(["Buffer"], () => assert.deepEqual(decodeFloat32(text, isLittleEndian), FLOATS));
  }
  const { from } = Buffer;
  const decode = (base64: string) => Uint8Array.from(from(base64, "base64"));
  Object.defineProperty(Uint8Array, "fromBase64", { value: decode, configurable: true });
  try {
    without(["Buffer", "atob"], () => assert.deepEqual(decodeFloat32(text), FLOATS));
  } finally {
    delete (Uint8Array as { fromBase64?: unknown }).fromBase64;
  }
});

test("any number of bytes, and text that isn't base64", () => {
  for (const n of [0, 1, 2, 3, 4, 5, 6, 7, 8, 100_000]) {
    const bytes = Uint8Array.from({ length: n }, (_, i) => 250 - i);
    const text = Buffer.from(bytes).toString("base64");
    assert.equal(encodeBytes(bytes), text);
    without(["Buffer"], () => assert.equal(encodeBytes(bytes), text));
    assert.deepEqual(decodeBase64(text), bytes);
    without(["Buffer"], () => assert.deepEqual(decodeBase64(text), bytes));
  }
  for (const invalid of ["AAA!", "A", "AAAA-=", "ä"]) {
    assert.throws(() => decodeBase64(invalid), ParseError, invalid);
    without(["Buffer"], () => assert.throws(() => decodeBase64(invalid), ParseError, invalid));
  }
});

test("vectors don't share a buffer", () => {
  const [a, b] = [decodeFloat32(encodeBase64(FLOATS)), decodeFloat32(encodeBase64(FLOATS))];
  assert.notEqual(a.buffer, b.buffer);
  assert.equal(a.buffer.byteLength, 4 * 384);
});

test("positions and ranges", () => {
  assert.deepEqual(parsePositions(null), []);
  assert.deepEqual(parsePositions("0,4-7"), [0, 4, 5, 6, 7]);
  assert.deepEqual(parsePositions("3, 5-5"), [3, 5]);
  for (const invalid of ["a", "1,,2", "-1", "1-"]) {
    assert.throws(() => parsePositions(invalid), ParseError);
  }
});

test("comparable spaces", () => {
  assert.ok(isComparable("a-int8", "a-int8"));
  assert.ok(!isComparable("a-int8", "a-uint8"));
  for (const invalid of ["a", "-fp32", "a-"]) {
    assert.throws(() => isComparable("a-fp32", invalid), ParseError);
  }
});

test("lines in chunks of any size", () => {
  const text = "ä\n\n世界 🌍\r\nend";
  const bytes = Buffer.from(text);
  for (let size = 1; size <= bytes.length; size++) {
    const lines: string[] = [];
    const splitter = new LineSplitter((line) => lines.push(line));
    for (let i = 0; i < bytes.length; i += size) splitter.push(bytes.subarray(i, i + size));
    splitter.end();
    assert.deepEqual(lines, ["ä", "", "世界 🌍", "end"]);
  }
});

test("a line beyond the maximum is dropped, the next line isn't", () => {
  const lines: string[] = [];
  let dropped = 0;
  const splitter = new LineSplitter((line) => lines.push(line), () => dropped++, 10);
  splitter.push(Buffer.from("0123456"));
  splitter.push(Buffer.from("789abc"));
  splitter.push(Buffer.from("def\n0123456789\nx"));
  splitter.push(Buffer.from("y\n"));
  assert.deepEqual(lines, ["0123456789", "xy"]);
  assert.equal(dropped, 1);
});

test("restart delays double, and start again after a stable minute", () => {
  const backoff = new RestartBackoff(2000, 5);
  const delays = () => Array.from({ length: 6 }, () => backoff.next(0));
  assert.deepEqual(delays(), [2000, 4000, 8000, 16_000, 30_000, undefined]);
  assert.equal(backoff.next(59_000), undefined);
  assert.equal(backoff.next(61_000), 2000);
  assert.equal(backoff.inRow, 1);
  assert.equal(backoff.restarts, 6);
});
