/** What a client is told, with defaults, and what a single call is. */

import type { RetryOptions } from "./retry.js";

/** How a client finds the service, and how patient it is. */
export interface ClientOptions {
  /** Where the service is, perhaps with a path before its own; default: `http://127.0.0.1`. */
  readonly baseUrl?: string | undefined;
  /** Used where `baseUrl` has no port, `https` included; default: 8421. */
  readonly port?: number | undefined;
  /** Milliseconds that a whole call may take, retries included; default: 30000. */
  readonly timeout?: number | undefined;
  /** Tries after the first, on network errors, 429 and 5xx; default: 2. */
  readonly retryAttempts?: number | undefined;
  /** The most milliseconds before the second try, doubled for each further one; default: 1000. */
  readonly retryDelay?: number | undefined;
  /** Sent as `Authorization: Bearer`; never shown. */
  readonly apiKey?: string | undefined;
  /** Which model is wanted; default: the service's. */
  readonly model?: string | undefined;
  /** Texts in one request; longer lists are split; default: 256. */
  readonly batchSize?: number | undefined;
  /** Requests that one call has in flight at once; default: 4. */
  readonly concurrency?: number | undefined;
  /** Takes the place of the global `fetch`. */
  readonly fetch?: typeof globalThis.fetch | undefined;
  /** The space that all vectors must be comparable with; default: that of the first reply. */
  readonly expectSpace?: string | undefined;
  /** Lets vectors of spaces through that can't be compared; default: false. */
  readonly allowMixedSpaces?: boolean | undefined;
}

/** Of any call. */
export interface CallOptions {
  /** Ends the call's requests, retries and waits at once; it rejects with the signal's reason. */
  readonly signal?: AbortSignal | undefined;
  /** Milliseconds that this call may take; default: the client's. */
  readonly timeout?: number | undefined;
}

/** How texts are to be embedded. */
export interface EmbedOptions extends CallOptions {
  /** Which model is wanted; default: the client's. */
  readonly model?: string | undefined;
  /** `query`, `document`, or one of the model's own prompts; default: the model's. */
  readonly inputType?: string | undefined;
  /** Components to keep of each vector, at unit length again; default: all. */
  readonly dimensions?: number | undefined;
  /** true: vectors of unit length; default: as the model gives them. */
  readonly normalize?: boolean | undefined;
}

/** The options of a client that have a default. */
export interface Settings extends RetryOptions {
  readonly url: string;
  readonly timeout: number;
  readonly batchSize: number;
  readonly concurrency: number;
}

/** @throws {TypeError} an option can't be used. */
export function settings(options: ClientOptions): Settings {
  return {
    url: address(options.baseUrl ?? "http://127.0.0.1", whole("port", options.port ?? 8421, 1)),
    timeout: atLeast("timeout", options.timeout ?? 30_000, 0),
    retryAttempts: whole("retryAttempts", options.retryAttempts ?? 2, 0),
    retryDelay: atLeast("retryDelay", options.retryDelay ?? 1000, 0),
    batchSize: whole("batchSize", options.batchSize ?? 256, 1),
    concurrency: whole("concurrency", options.concurrency ?? 4, 1),
  };
}

/**
 * @throws {TypeError} it isn't a number of at least `least`.
 * @internal
 */
export function atLeast(name: string, value: number, least: number): number {
  if (typeof value === "number" && value >= least) return value;
  throw new TypeError(`${name} must be a number of at least ${least}.`);
}

/**
 * @throws {TypeError} it isn't a whole number of at least `least`.
 * @internal
 */
export function whole(name: string, value: number, least: number): number {
  if (Number.isInteger(value) && value >= least) return value;
  throw new TypeError(`${name} must be a whole number of at least ${least}.`);
}

function address(baseUrl: string, port: number): string {
  let url: URL;
  try {
    url = new URL(baseUrl);
  } catch {
    throw new TypeError("baseUrl isn't a URL.");
  }
  if (!/^https?:$/.test(url.protocol)) throw new TypeError("baseUrl must be http or https.");
  // Not shown: a password is a secret, and fetch would put it in the words of its error.
  if (url.username || url.password) throw new TypeError("baseUrl has a user in it; use apiKey.");
  // Read from the text, since URL forgets a port that is its scheme's own.
  if (!/^\w+:\/\/[^/?#]*:\d+(?=[/?#]|$)/.test(baseUrl)) url.port = String(port);
  return url.origin + url.pathname.replace(/\/+$/, "");
}
