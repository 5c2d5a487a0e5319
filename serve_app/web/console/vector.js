/** Returns the dot product of two vectors of the same length. */
export function dot(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

/** Returns the Euclidean length of a vector. */
export function norm(vector) {
  return Math.sqrt(dot(vector, vector));
}

/** Returns the cosine of two vectors; 0 if one of them is zero. */
export function cosine(a, b) {
  const lengths = norm(a) * norm(b);
  return lengths ? dot(a, b) / lengths : 0;
}

/**
 * Decodes a vector from base64, as `encoding_format: base64` returns it: little-endian float32.
 */
export function decodeVector(base64) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  return new Float32Array(bytes.buffer);
}
