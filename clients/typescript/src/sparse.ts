/** Sparse vectors in the format of `POST /embed_sparse` of text-embeddings-inference. */

import { ParseError } from "./errors.js";
import type { SparseOptions } from "./options.js";
import { asRecord, falseOrUndefined, postRequest, type Request, type Response } from "./wire.js";

/** The non-zero components of a vector, by ascending index. */
export interface SparseVector {
  /** Ids of the vocabulary's tokens. */
  readonly indices: Uint32Array;
  /** Their weights. */
  readonly values: Float32Array;
}

/**
 * Builds the request for the sparse vectors of texts.
 * @internal
 */
export function sparseRequest(
  inputs: readonly string[],
  { model, inputType, truncation, useCache, lane }: SparseOptions,
): Request {
  const body = {
    inputs,
    model,
    prompt_name: inputType,
    truncate: falseOrUndefined(truncation !== "error"),
    use_cache: falseOrUndefined(useCache),
  };
  return postRequest("/embed_sparse", body, lane);
}

/**
 * Parses the response to a request with n texts.
 * @throws {ParseError} the response doesn't hold n sparse vectors of finite components.
 * @internal
 */
export function parseSparseVectors({ body }: Response, n: number): SparseVector[] {
  if (!Array.isArray(body) || body.length !== n || !body.every(Array.isArray)) {
    throw new ParseError(`The response doesn't hold ${n} sparse vectors.`);
  }
  return body.map((row: unknown[]) => {
    const items = row.map((item) => {
      const { index, value } = asRecord(item);
      if (!Number.isSafeInteger(index) || (index as number) < 0 || !Number.isFinite(value)) {
        throw new ParseError(`A sparse vector has the index ${index} and the value ${value}.`);
      }
      return [index as number, value as number] as const;
    });
    items.sort(([a], [b]) => a - b);
    return {
      indices: Uint32Array.from(items, ([index]) => index),
      values: Float32Array.from(items, ([, value]) => value),
    };
  });
}
