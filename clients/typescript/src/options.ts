/** The options of a client and of its calls, their defaults, and their validation. */

import { environmentVariable } from "./environment.js";
import { InvalidURLError } from "./errors.js";
import type { FallbackModel } from "./fallback.js";
import type { Logger } from "./log.js";
import type { RetryPolicy } from "./retry.js";

/**
 * The defaults of `ClientOptions`.
 * @internal
 */
export const CLIENT_DEFAULTS = {
  timeoutMs: 60_000,
  maxRetries: 5,
  retryDelayMs: 250,
  maxRetryDelayMs: 8000,
  batchSize: 256,
  concurrency: 4,
  allowMixedSpaces: false,
};
/** @internal */
export const DEFAULT_PORT = 8000;

/** Options of a client; all are optional. */
export interface ClientOptions {
  /** The URL of the service. Default: `EMBEDSERVE_URL` in Node, or `http://127.0.0.1:8000`. */
  readonly baseUrl?: string | undefined;
  /** Sent as a bearer token, never shown. Default: `EMBEDSERVE_API_KEY` in Node. */
  readonly apiKey?: string | undefined;
  /**
   * A name or alias of the model of all calls that name none. Default: the service's default model
   * for each kind of call.
   */
  readonly model?: string | undefined;
  /** The timeout of each request in milliseconds, retries included. Default: 60000. */
  readonly timeoutMs?: number | undefined;
  /** Retries after network errors, 429 and 5xx. Default: 5. With a fallback: 1. */
  readonly maxRetries?: number | undefined;
  /** The maximum delay before the first retry; doubles with each retry. Default: 250. */
  readonly retryDelayMs?: number | undefined;
  /** The upper bound of the delays in milliseconds. Default: 8000. */
  readonly maxRetryDelayMs?: number | undefined;
  /** Texts per request; longer lists are split. Default: 256. */
  readonly batchSize?: number | undefined;
  /** Concurrent requests of one call. Default: 4. */
  readonly concurrency?: number | undefined;
  /**
   * Pins the space of all vectors of texts and images: requests name it, and a service with another
   * one computes nothing, which is a `SpaceConflictError`. Default: the space of the first response
   * of each model.
   */
  readonly expectedSpace?: string | undefined;
  /** Accepts vectors of different spaces. Default: false. */
  readonly allowMixedSpaces?: boolean | undefined;
  /** Computes vectors while the service is unavailable, in a comparable space. Default: none. */
  readonly fallback?: FallbackModel | undefined;
  /** Replaces the global `fetch`. */
  readonly fetch?: typeof globalThis.fetch | undefined;
  /** Receives retries and requests. Default: none, or as `LOG_CATEGORIES` says in Node. */
  readonly logger?: Logger | undefined;
}

/** Options of every call. */
export interface CallOptions {
  /** Aborts the call, its requests and its retries; the call rejects with the signal's reason. */
  readonly signal?: AbortSignal | undefined;
  /** Overrides the client's timeout of each request, in milliseconds. */
  readonly timeoutMs?: number | undefined;
}

/** Options of a call to one model; all are optional. */
export interface ModelOptions extends CallOptions {
  /** Overrides the client's model. */
  readonly model?: string | undefined;
}

/** The priority of a request. */
export type Lane = "interactive" | "bulk";

/** Options of a call that computes; all are optional. */
interface ComputeOptions extends ModelOptions {
  /** The priority. Default: small requests are interactive. */
  readonly lane?: Lane | undefined;
  /** false: bypasses the cache, for reading and for writing. Default: true. */
  readonly useCache?: boolean | undefined;
}

/** Options of a rerank call; all are optional. */
export interface RerankOptions extends ComputeOptions {
  /** The number of best documents to return. Default: all. */
  readonly topN?: number | undefined;
}

/** Options of a call for labels; all are optional. */
export interface ClassifyOptions extends ComputeOptions {}

/** Options of a call for sparse vectors; all are optional. */
export interface SparseOptions extends ComputeOptions {
  /** `query`, `document`, or the name of another prompt of the model. */
  readonly inputType?: string | undefined;
  /** What to do with a text beyond the token limit: cut its `end`, or fail. Default: `end`. */
  readonly truncation?: "end" | "error" | undefined;
}

/** Options of a call for vectors of images; all are optional. */
export interface ImageOptions extends ComputeOptions {
  /** The number of leading dimensions to keep; vectors are normalized again. */
  readonly dimensions?: number | undefined;
}

/** Options of an embedding call; all are optional. */
export interface EmbedOptions extends ComputeOptions {
  /** `query`, `document`, or the name of another prompt of the model. */
  readonly inputType?: string | undefined;
  /** The number of leading dimensions to keep; vectors are normalized again. */
  readonly dimensions?: number | undefined;
  /**
   * What to do with a text beyond the token limit: cut its `end` or `start`, fail with an `error`,
   * or embed it in parts (`chunk`). Default: `end`.
   */
  readonly truncation?: "end" | "start" | "error" | "chunk" | undefined;
  /** true: vectors of unit length; false: as the model returns them. Default: the model's. */
  readonly normalize?: boolean | undefined;
}

/**
 * The names of all options of an interface.
 * @internal
 */
export type OptionNames<T> = Readonly<Record<keyof T, true>>;

/** @internal */
export const CLIENT_OPTIONS: OptionNames<ClientOptions> = {
  baseUrl: true,
  apiKey: true,
  model: true,
  timeoutMs: true,
  maxRetries: true,
  retryDelayMs: true,
  maxRetryDelayMs: true,
  batchSize: true,
  concurrency: true,
  expectedSpace: true,
  allowMixedSpaces: true,
  fallback: true,
  fetch: true,
  logger: true,
};
/** @internal */
export const CALL_OPTIONS: OptionNames<CallOptions> = { signal: true, timeoutMs: true };
/** @internal */
export const MODEL_OPTIONS: OptionNames<ModelOptions> = { ...CALL_OPTIONS, model: true };
const COMPUTE_OPTIONS: OptionNames<ComputeOptions> = {
  ...MODEL_OPTIONS,
  lane: true,
  useCache: true,
};
/** @internal */
export const RERANK_OPTIONS: OptionNames<RerankOptions> = { ...COMPUTE_OPTIONS, topN: true };
/** @internal */
export const CLASSIFY_OPTIONS: OptionNames<ClassifyOptions> = COMPUTE_OPTIONS;
/** @internal */
export const IMAGE_OPTIONS: OptionNames<ImageOptions> = { ...COMPUTE_OPTIONS, dimensions: true };
/** @internal */
export const SPARSE_OPTIONS: OptionNames<SparseOptions> = {
  ...COMPUTE_OPTIONS,
  inputType: true,
  truncation: true,
};
/** @internal */
export const EMBED_OPTIONS: OptionNames<EmbedOptions> = {
  ...SPARSE_OPTIONS,
  ...IMAGE_OPTIONS,
  normalize: true,
};

/**
 * Validated options of a client.
 * @internal
 */
export interface ClientSettings extends RetryPolicy {
  readonly url: string;
  readonly apiKey: string | undefined;
  readonly timeoutMs: number;
  readonly batchSize: number;
  readonly concurrency: number;
  readonly allowMixedSpaces: boolean;
}

/**
 * Validates the options of a client and applies the defaults.
 * @throws {TypeError} an option has an invalid value, or there is no such option.
 * @throws {InvalidURLError} the URL is malformed.
 * @internal
 */
export function resolveOptions(options: ClientOptions): ClientSettings {
  checkNames(options, CLIENT_OPTIONS);
  const defaults = options.fallback ? { ...CLIENT_DEFAULTS, maxRetries: 1 } : CLIENT_DEFAULTS;
  const settings = withDefaults(defaults, options);
  checkNumbers(settings, ["timeoutMs", "retryDelayMs", "maxRetryDelayMs"]);
  checkIntegers(settings, ["maxRetries"], 0);
  checkIntegers(settings, ["batchSize", "concurrency"], 1);
  const url = options.baseUrl ?? environmentVariable("EMBEDSERVE_URL");
  return {
    ...settings,
    url: parseUrl(url ?? `http://127.0.0.1:${DEFAULT_PORT}`),
    apiKey: options.apiKey ?? environmentVariable("EMBEDSERVE_API_KEY"),
  };
}

/**
 * @throws {TypeError} an option isn't one of `names`.
 * @internal
 */
export function checkNames(options: object, names: Readonly<Record<string, true>>): void {
  for (const name of Object.keys(options)) {
    if (Object.hasOwn(names, name)) continue;
    const known = Object.keys(names).join(", ");
    throw new TypeError(`There is no option \`${name}\` here. The options are ${known}.`);
  }
}

/**
 * Returns the values of `options` for the names in `defaults`; undefined: the default.
 * @internal
 */
export function withDefaults<D extends object>(
  defaults: D,
  options: { readonly [K in keyof D]?: D[K] | undefined },
): D {
  const result = { ...defaults };
  for (const name in defaults) result[name] = options[name] ?? defaults[name];
  return result;
}

/**
 * @throws {TypeError} an option isn't a number of at least 0.
 * @internal
 */
export function checkNumbers<K extends string>(
  options: Readonly<Record<K, number>>,
  names: readonly K[],
): void {
  for (const name of names) {
    const value: unknown = options[name];
    if (typeof value === "number" && value >= 0) continue;
    throw new TypeError(`\`${name}\` must be a number of at least 0.`);
  }
}

/**
 * @throws {TypeError} an option isn't an integer of at least `min`.
 * @internal
 */
export function checkIntegers<K extends string>(
  options: Readonly<Record<K, number>>,
  names: readonly K[],
  min: number,
): void {
  for (const name of names) {
    if (Number.isInteger(options[name]) && options[name] >= min) continue;
    throw new TypeError(`\`${name}\` must be an integer of at least ${min}.`);
  }
}

function parseUrl(text: string): string {
  let url: URL;
  try {
    url = new URL(text);
  } catch {
    throw new InvalidURLError("`baseUrl` isn't a valid URL. The form is http://host:port.");
  }
  if (!/^https?:$/.test(url.protocol)) {
    throw new InvalidURLError("The scheme of `baseUrl` must be http or https.");
  }
  // The URL isn't shown, because a password is secret; the error of `fetch` would contain it.
  if (url.username || url.password) {
    throw new InvalidURLError("`baseUrl` contains a user name or password. Use `apiKey` instead.");
  }
  return url.origin + url.pathname.replace(/\/+$/, "");
}
