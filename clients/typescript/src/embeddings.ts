/** What comes back: vectors, and what is known of them. */

/** What is known of vectors beside their values. */
export interface About {
  /** The space they are in; undefined: the service, or the browser's CORS rules, didn't tell. */
  readonly space: string | undefined;
  /** The model that made them, by the service's name; undefined where no request was needed. */
  readonly model: string | undefined;
  /** The model's tokens in all the texts, after truncation. */
  readonly tokens: number;
  /** Places of texts that were too long and were cut; undefined: not known, as `space`. */
  readonly truncated: readonly number[] | undefined;
}

/**
 * Vectors in the order of their texts: a real array, with four properties more. Both survive
 * `structuredClone` and `postMessage`; what `map`, `slice` and their like return is a plain array.
 */
export interface Embeddings extends Array<Float32Array>, About {}

/** Vectors with what is known of them. */
export function embeddings(vectors: Float32Array[], about: About): Embeddings {
  return Object.assign(vectors, about);
}

/** What was asked for in parts, as one. `offset` of a part: the place of its first text. */
export function joined(parts: readonly Embeddings[]): Embeddings {
  const [first] = parts;
  if (first && parts.length === 1) return first;
  const truncated: number[] = [];
  let offset = 0;
  let known = true;
  for (const part of parts) {
    for (const place of part.truncated ?? []) truncated.push(offset + place);
    known &&= part.truncated !== undefined;
    offset += part.length;
  }
  return embeddings(parts.flat(), {
    space: first?.space,
    model: first?.model,
    tokens: parts.reduce((sum, part) => sum + part.tokens, 0),
    truncated: known ? truncated : undefined,
  });
}
