/** The client of a running service. */

import { Deadline } from "./deadline.js";
import { EmbedError } from "./errors.js";
import { CircuitBreaker, type FallbackModel } from "./fallback.js";
import { createLog, type Log } from "./log.js";
import { mapConcurrently } from "./map-concurrently.js";
import {
  CALL_OPTIONS,
  type CallOptions,
  checkNames,
  checkNumbers,
  type ClientOptions,
  type ClientSettings,
  EMBED_OPTIONS,
  type EmbedOptions,
  resolveOptions,
} from "./options.js";
import { type RetryPolicy, sendWithRetries } from "./retry.js";
import { SpaceGuard } from "./space.js";
import { Transport } from "./transport.js";
import { concatenate, type Vectors, withInfo } from "./vectors.js";
import {
  embedRequest,
  type Health,
  HEALTH_REQUEST,
  type Info,
  INFO_REQUEST,
  MODELS_REQUEST,
  parseHealth,
  parseInfo,
  parseModelNames,
  parseVectors,
  type Request,
  type Response,
} from "./wire.js";

const HEALTH_TIMEOUT_MS = 5000;

/**
 * A client for Node and browsers. It holds no connections and may be used by concurrent calls.
 *
 * Every method rejects with an `EmbedError`, or with the reason of its `signal`.
 */
export class Client {
  /** The URL of the service, without a slash at its end. */
  readonly baseUrl: string;
  readonly #settings: ClientSettings;
  readonly #model: string | undefined;
  readonly #transport: Transport;
  readonly #spaceGuard: SpaceGuard;
  readonly #log: Log;
  readonly #fallback: FallbackModel | undefined;
  readonly #breaker: CircuitBreaker;

  /**
   * @throws {TypeError} an option has an invalid value, or there is no such option.
   * @throws {InvalidURLError} the URL is malformed.
   */
  constructor(options: ClientOptions = {}) {
    this.#settings = resolveOptions(options);
    this.baseUrl = this.#settings.url;
    this.#model = options.model;
    this.#log = createLog(options.logger, "CLIENT");
    const { allowMixedSpaces, apiKey } = this.#settings;
    this.#transport = new Transport(this.baseUrl, apiKey, options.fetch, this.#log);
    this.#fallback = options.fallback;
    this.#breaker = new CircuitBreaker(this.#log);
    this.#spaceGuard = new SpaceGuard(options.expectedSpace, !allowMixedSpaces);
  }

  /** The space of this client's vectors; undefined: no vectors yet, or the space is unknown. */
  get space(): string | undefined {
    return this.#spaceGuard.expected;
  }

  /**
   * Embeds texts, in order. A long list is split into several requests, and the first failure
   * aborts the others. An empty list needs no request.
   * @throws {TypeError} `texts` is neither a string nor a list of strings.
   */
  embed(text: string, options?: EmbedOptions): Promise<Float32Array>;
  embed(texts: readonly string[], options?: EmbedOptions): Promise<Vectors>;
  embed(
    texts: string | readonly string[],
    options?: EmbedOptions,
  ): Promise<Float32Array | Vectors>;
  /**
   * @param useFallback false: rejects if the service is unavailable
   * @internal
   */
  embed(
    texts: string | readonly string[],
    options: EmbedOptions,
    useFallback: boolean,
  ): Promise<Float32Array | Vectors>;
  async embed(
    texts: string | readonly string[],
    options: EmbedOptions = {},
    useFallback = true,
  ): Promise<Float32Array | Vectors> {
    if (typeof texts === "string") {
      return (await this.embed([texts], options, useFallback))[0] as Float32Array;
    }
    checkNames(options, EMBED_OPTIONS);
    if (!Array.isArray(texts) || !texts.every((text) => typeof text === "string")) {
      throw new TypeError("`texts` must be a string or a list of strings.");
    }
    if (texts.length === 0) {
      const { space } = this;
      return withInfo([], { space, model: undefined, source: "service", tokens: 0, truncated: [] });
    }
    const { batchSize, concurrency } = this.#settings;
    const batches: string[][] = [];
    for (let i = 0; i < texts.length; i += batchSize) batches.push(texts.slice(i, i + batchSize));
    // The last batch may be short, but it isn't interactive either.
    const lane = options.lane ?? (batches.length > 1 ? "bulk" : undefined);
    const params = { ...options, model: options.model ?? this.#model, lane };
    const fallback = useFallback ? this.#fallback : undefined;
    const call = new Deadline(Infinity, options.signal);
    try {
      const parts = await mapConcurrently(batches, concurrency, call, async (batch) => {
        const embed = async () =>
          parseVectors(await this.#send(embedRequest(batch, params), options, call), batch.length);
        const vectors = await (fallback === undefined
          ? embed()
          : this.#breaker.call(embed, () => this.isHealthy(), () =>
              call.race((signal) => fallback.embed(batch, { ...params, signal })),
            ));
        this.#spaceGuard.check(vectors.space);
        return vectors;
      });
      return concatenate(parts);
    } finally {
      call.abort();
    }
  }

  /** Embeds a search query. */
  embedQuery(text: string, options: EmbedOptions = {}): Promise<Float32Array> {
    return this.embed(text, { inputType: "query", ...options });
  }

  /** Embeds documents to search in. */
  embedDocuments(texts: readonly string[], options: EmbedOptions = {}): Promise<Vectors> {
    return this.embed(texts, { inputType: "document", ...options });
  }

  /**
   * Returns the health of the service: `status` is `ok`, `degraded` or `unavailable`. It isn't
   * retried, and its default timeout is 5 s.
   */
  async health(options: CallOptions = {}): Promise<Health> {
    const call = { ...options, timeoutMs: options.timeoutMs ?? HEALTH_TIMEOUT_MS };
    return parseHealth(await this.#get(HEALTH_REQUEST, call, { ...this.#settings, maxRetries: 0 }));
  }

  /** Returns whether the service is reachable and can embed. */
  async isHealthy(options: CallOptions = {}): Promise<boolean> {
    try {
      return ["ok", "degraded"].includes((await this.health(options)).status);
    } catch (error) {
      if (error instanceof EmbedError) return false;
      throw error;
    }
  }

  /** Returns what is served: model, dimensions, space, engine, versions. */
  async info(options: CallOptions = {}): Promise<Info> {
    return parseInfo(await this.#get(INFO_REQUEST, options));
  }

  /** Returns the names of the served models. */
  async models(options: CallOptions = {}): Promise<string[]> {
    return parseModelNames(await this.#get(MODELS_REQUEST, options));
  }

  async #get(request: Request, options: CallOptions, policy?: RetryPolicy): Promise<Response> {
    checkNames(options, CALL_OPTIONS);
    const call = new Deadline(Infinity, options.signal);
    try {
      return await this.#send(request, options, call, policy);
    } finally {
      call.abort();
    }
  }

  /** Sends a request and its retries, within a timeout that starts now. */
  async #send(
    request: Request,
    options: CallOptions,
    call: Deadline,
    policy: RetryPolicy = this.#settings,
  ): Promise<Response> {
    const { timeoutMs = this.#settings.timeoutMs } = options;
    checkNumbers({ timeoutMs }, ["timeoutMs"]);
    const deadline = call.child(timeoutMs);
    try {
      const send = () => this.#transport.send(request, deadline);
      return await sendWithRetries(send, policy, deadline, this.#log);
    } finally {
      deadline.abort();
    }
  }
}
