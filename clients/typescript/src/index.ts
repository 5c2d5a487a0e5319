/** The client, for Node and for browsers. What starts processes is in `embedserve-client/node`. */

export { EmbedClient } from "./client.js";
export type { About, Embeddings } from "./embeddings.js";
export {
  EmbedError,
  type ErrorCode,
  HttpError,
  NetworkError,
  OverloadedError,
  ParseError,
  type Refusal,
  SidecarError,
  SpaceMismatchError,
  TimeoutError,
  WorkerError,
} from "./errors.js";
export type { CallOptions, ClientOptions, EmbedOptions } from "./options.js";
export type { Health, Info, Model } from "./wire.js";
