/** Reranking in the format of `POST /v1/rerank` of Cohere, Jina and vLLM. */

import { ParseError } from "./errors.js";
import type { RerankOptions } from "./options.js";
import { asRecord, falseOrUndefined, postRequest, type Request, type Response } from "./wire.js";

/** A document and its score. */
export interface RerankResult {
  /** The position of the document in the call, from 0. */
  readonly index: number;
  /** Relevance to the query, 0 to 1. */
  readonly score: number;
  readonly document: string;
}

/**
 * Builds the request for the scores of documents.
 * @internal
 */
export function rerankRequest(
  query: string,
  documents: readonly string[],
  { model, topN, useCache, lane }: RerankOptions,
): Request {
  const use_cache = falseOrUndefined(useCache);
  return postRequest("/v1/rerank", { query, documents, model, top_n: topN, use_cache }, lane);
}

/**
 * Parses the response to a request; returns the best documents, best first.
 * @throws {ParseError} the response doesn't hold scores of as many different documents.
 * @internal
 */
export function parseRanking(
  { body }: Response,
  documents: readonly string[],
  topN = Infinity,
): RerankResult[] {
  const { results } = asRecord(body);
  if (!Array.isArray(results)) throw new ParseError("The response has no list `results`.");
  const ranking = results.map((item) => {
    const { index, relevance_score: score } = asRecord(item);
    const document = documents[index as number];
    if (typeof index !== "number" || document === undefined || !Number.isFinite(score)) {
      throw new ParseError(`A result has the index ${index} and the score ${score}.`);
    }
    return { index, score: score as number, document };
  });
  const { size } = new Set(ranking.map(({ index }) => index));
  const expected = Math.min(topN, documents.length);
  if (ranking.length !== expected || size !== expected) {
    throw new ParseError(`The service returned scores of ${size} documents instead of ${expected}.`);
  }
  return ranking;
}

/**
 * Merges the rankings of one call that was split into requests for `batchSize` documents.
 * @internal
 */
export function mergeRankings(
  rankings: readonly RerankResult[][],
  batchSize: number,
  topN: number | undefined,
): RerankResult[] {
  const shifted = rankings.flatMap((ranking, i) =>
    ranking.map((result) => ({ ...result, index: result.index + i * batchSize })),
  );
  // The sort is stable: documents of equal score keep their order.
  return shifted.sort((a, b) => b.score - a.score).slice(0, topN);
}
