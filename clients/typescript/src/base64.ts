/** Vectors out of the base64 of their bytes, little-endian float32. */

import { ParseError } from "./errors.js";

/** As far as it is used here; browser code can't rely on Node's types. */
interface BufferLike {
  from(memory: ArrayBuffer): { write(text: string, encoding: "base64"): number };
}
interface Decoders {
  readonly Buffer?: BufferLike;
  readonly Uint8Array: { fromBase64?: (text: string) => Uint8Array };
}

const HOST_IS_LITTLE = new Uint8Array(new Uint16Array([1]).buffer)[0] === 1;

/**
 * One vector.
 * @param littleHost the order of bytes in this machine's own floats; others are given by tests
 * @throws {ParseError} it isn't base64, or not of whole floats.
 */
export function floatsOfBase64(text: string, littleHost = HOST_IS_LITTLE): Float32Array {
  const bytes = bytesOfBase64(text);
  if (bytes.length % 4 !== 0) {
    throw new ParseError(`A vector came as ${bytes.length} bytes, which are no whole float32s.`);
  }
  const n = bytes.length / 4;
  const aligned = bytes.byteOffset % 4 === 0 ? bytes : bytes.slice();
  if (littleHost) return new Float32Array(aligned.buffer, aligned.byteOffset, n);
  const view = new DataView(aligned.buffer, aligned.byteOffset);
  return Float32Array.from({ length: n }, (_, i) => view.getFloat32(4 * i, true));
}

/**
 * The bytes, in memory of their own.
 * @throws {ParseError} it isn't base64.
 */
export function bytesOfBase64(text: string): Uint8Array {
  const global = globalThis as unknown as Decoders;
  try {
    if (global.Uint8Array.fromBase64) return global.Uint8Array.fromBase64(text);
    if (global.Buffer) return byBuffer(text, global.Buffer);
    const binary = atob(text);
    return Uint8Array.from({ length: binary.length }, (_, i) => binary.charCodeAt(i));
  } catch (error) {
    throw new ParseError("A vector isn't base64.", { cause: error });
  }
}

function byBuffer(text: string, { from }: BufferLike): Uint8Array {
  const padding = text.endsWith("==") ? 2 : text.endsWith("=") ? 1 : 0;
  const digits = text.length - padding;
  const size = Math.floor((digits * 3) / 4);
  // Writing into memory of our own, since Buffer's own lies unaligned in a pool that it shares.
  const bytes = new Uint8Array(size);
  // Buffer leaves out what isn't base64 and says nothing.
  const isWhole = digits % 4 !== 1 && from(bytes.buffer).write(text, "base64") === size;
  if (!isWhole) throw new TypeError("It has something in it that isn't base64.");
  return bytes;
}
