/** The client, for Node and for browsers. `embedserve-client/node` adds processes. */

export type { LabelScore } from "./classify.js";
export { Client } from "./client.js";
export {
  EmbedError,
  type ErrorCode,
  type ErrorResponse,
  HTTPError,
  InvalidURLError,
  NetworkError,
  ParseError,
  RateLimitError,
  RequestTimeoutError,
  ServerError,
  ServiceNotRunningError,
  SpaceConflictError,
  SpaceMismatchError,
  WorkerError,
} from "./errors.js";
export type { FallbackModel } from "./fallback.js";
export type { ImageInput } from "./images.js";
export type { Logger } from "./log.js";
export type {
  CallOptions,
  ClassifyOptions,
  ClientOptions,
  EmbedOptions,
  ImageOptions,
  ModelOptions,
  RerankOptions,
  SparseOptions,
} from "./options.js";
export type { RerankResult } from "./rerank.js";
export type { SparseVector } from "./sparse.js";
export type { VectorInfo, Vectors } from "./vectors.js";
export type { Health, Info } from "./wire.js";
