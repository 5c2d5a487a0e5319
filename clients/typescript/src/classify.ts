/** Classification in the format of `POST /predict` of text-embeddings-inference. */

import { ParseError } from "./errors.js";
import type { ClassifyOptions } from "./options.js";
import { asRecord, falseOrUndefined, postRequest, type Request, type Response } from "./wire.js";

/** A label and its score. */
export interface LabelScore {
  readonly label: string;
  /** 0 to 1. */
  readonly score: number;
}

/**
 * Builds the request for the labels of texts.
 * @internal
 */
export function classifyRequest(
  texts: readonly string[],
  { model, useCache, lane }: ClassifyOptions,
): Request {
  const inputs = texts.map((text) => [text]);
  return postRequest("/predict", { inputs, model, use_cache: falseOrUndefined(useCache) }, lane);
}

/**
 * Parses the response to a request with n texts; returns the best label first.
 * @throws {ParseError} the response doesn't hold finite scores of labels for n texts.
 * @internal
 */
export function parseLabels({ body }: Response, n: number): LabelScore[][] {
  if (!Array.isArray(body) || body.length !== n || !body.every(Array.isArray)) {
    throw new ParseError(`The response doesn't hold labels of ${n} texts.`);
  }
  return body.map((row: unknown[]) => {
    if (row.length === 0) throw new ParseError("The service returned no labels for a text.");
    const labels = row.map((item) => {
      const { label, score } = asRecord(item);
      if (typeof label !== "string" || !Number.isFinite(score)) {
        throw new ParseError(`A result has the label ${label} and the score ${score}.`);
      }
      return { label, score: score as number };
    });
    // The sort is stable: labels of equal score keep their order.
    return labels.sort((a, b) => b.score - a.score);
  });
}
