/** Base64 → little-endian float32 → `Float32Array`, and bytes → base64. */

import { ParseError } from "./errors.js";

/** The part of Node's `Buffer` that is used; browser code can't rely on Node's types. */
interface BufferConstructor {
  from(
    memory: ArrayBufferLike,
    offset?: number,
    length?: number,
  ): { write(text: string, encoding: "base64"): number; toString(encoding: "base64"): string };
}
/** The decoders that a runtime may have. */
interface RuntimeDecoders {
  readonly Buffer?: BufferConstructor;
  readonly Uint8Array: { fromBase64?: (text: string) => Uint8Array };
}

const ENCODED_CHUNK = 0x8000;
const IS_LITTLE_ENDIAN = new Uint8Array(new Uint16Array([1]).buffer)[0] === 1;

/**
 * Decodes one vector.
 * @param isLittleEndian the byte order of this machine
 * @throws {ParseError} the text isn't base64, or doesn't hold complete floats.
 */
export function decodeFloat32(text: string, isLittleEndian = IS_LITTLE_ENDIAN): Float32Array {
  const bytes = decodeBase64(text);
  if (bytes.length % 4 !== 0) {
    throw new ParseError(`A vector has ${bytes.length} bytes, which isn't a multiple of 4.`);
  }
  const length = bytes.length / 4;
  const aligned = bytes.byteOffset % 4 === 0 ? bytes : bytes.slice();
  if (isLittleEndian) return new Float32Array(aligned.buffer, aligned.byteOffset, length);
  const view = new DataView(aligned.buffer, aligned.byteOffset);
  return Float32Array.from({ length }, (_, i) => view.getFloat32(4 * i, true));
}

/**
 * Decodes base64 into a buffer that nothing else shares.
 * @throws {ParseError} the text isn't base64.
 */
export function decodeBase64(text: string): Uint8Array {
  const runtime = globalThis as unknown as RuntimeDecoders;
  try {
    if (runtime.Uint8Array.fromBase64) return runtime.Uint8Array.fromBase64(text);
    if (runtime.Buffer) return decodeWithBuffer(text, runtime.Buffer);
    const binary = atob(text);
    return Uint8Array.from({ length: binary.length }, (_, i) => binary.charCodeAt(i));
  } catch (error) {
    throw new ParseError("A vector isn't base64.", { cause: error });
  }
}

/** Encodes bytes. */
export function encodeBase64(bytes: Uint8Array): string {
  const { Buffer } = globalThis as unknown as RuntimeDecoders;
  if (Buffer) {
    return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("base64");
  }
  let binary = "";
  // A call takes a limited number of arguments.
  for (let i = 0; i < bytes.length; i += ENCODED_CHUNK) {
    binary += String.fromCharCode(...bytes.subarray(i, i + ENCODED_CHUNK));
  }
  return btoa(binary);
}

function decodeWithBuffer(text: string, { from }: BufferConstructor): Uint8Array {
  const padding = text.endsWith("==") ? 2 : text.endsWith("=") ? 1 : 0;
  const digits = text.length - padding;
  const size = Math.floor((digits * 3) / 4);
  // `Buffer.from(text)` would return an unaligned part of a pool that other buffers share.
  const bytes = new Uint8Array(size);
  // `Buffer` skips invalid characters silently, so the number of bytes is compared.
  const isComplete = digits % 4 !== 1 && from(bytes.buffer).write(text, "base64") === size;
  if (!isComplete) throw new TypeError("The text has characters that aren't base64.");
  return bytes;
}
