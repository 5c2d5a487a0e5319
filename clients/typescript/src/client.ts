/** The client of a running service. */

import { classifyRequest, type LabelScore, parseLabels } from "./classify.js";
import { Deadline } from "./deadline.js";
import { EmbedError } from "./errors.js";
import { CircuitBreaker, type FallbackModel, isUnavailable } from "./fallback.js";
import { type ImageInput, splitImages } from "./images.js";
import { createLog, type Log } from "./log.js";
import { mapConcurrently } from "./map-concurrently.js";
import {
  CALL_OPTIONS,
  type CallOptions,
  checkIntegers,
  checkNames,
  checkNumbers,
  CLASSIFY_OPTIONS,
  type ClassifyOptions,
  type ClientOptions,
  type ClientSettings,
  EMBED_OPTIONS,
  type EmbedOptions,
  IMAGE_OPTIONS,
  type ImageOptions,
  MODEL_OPTIONS,
  type ModelOptions,
  RERANK_OPTIONS,
  type RerankOptions,
  resolveOptions,
  SPARSE_OPTIONS,
  type SparseOptions,
} from "./options.js";
import { mergeRankings, parseRanking, rerankRequest, type RerankResult } from "./rerank.js";
import { type RetryPolicy, sendWithRetries } from "./retry.js";
import { SpaceGuard } from "./space.js";
import { parseSparseVectors, sparseRequest, type SparseVector } from "./sparse.js";
import { Transport } from "./transport.js";
import { concatenate, type Vectors, withInfo } from "./vectors.js";
import {
  embedRequest,
  type Health,
  healthRequest,
  type Info,
  infoRequest,
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
  readonly #sparseSpaceGuard: SpaceGuard;
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
    this.#sparseSpaceGuard = new SpaceGuard(undefined, !allowMixedSpaces);
    this.#transport = new Transport(this.baseUrl, apiKey, options.fetch, this.#log);
    this.#fallback = options.fallback;
    this.#breaker = new CircuitBreaker(this.#log);
    this.#spaceGuard = new SpaceGuard(options.expectedSpace, !allowMixedSpaces);
  }

  /** The space of the vectors of this client's model; undefined: there are none, or unknown. */
  get space(): string | undefined {
    return this.#spaceGuard.expected(this.#model);
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
    const batches = this.#split("texts", texts);
    if (batches.length === 0) return this.#noVectors();
    const params = this.#params(options, batches.length);
    const { model } = params;
    // The fallback replaces the client's model, and others that have vectors of the same space.
    const isReplaceable = model === this.#model || this.#spaceGuard.expected(model) !== undefined;
    const fallback = useFallback && isReplaceable ? this.#fallback : undefined;
    const message = (batch: readonly string[]) =>
      embedRequest(batch, params, this.#spaceGuard.pinned);
    const parts = await this.#run(batches, params, async (batch, call) => {
      const embed = async () =>
        parseVectors(await this.#send(message(batch), params, call), batch.length);
      const vectors = await (fallback === undefined
        ? embed()
        : this.#breaker.call(embed, () => this.isHealthy({ model }), () =>
            call.race((signal) => fallback.embed(batch, { ...params, signal })),
          ));
      this.#spaceGuard.check(vectors.space, model);
      return vectors;
    });
    return concatenate(parts);
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
   * Embeds images, in order: PNG, JPEG, GIF or WebP.
   * @throws {TypeError} an image has another format.
   */
  embedImages(image: ImageInput, options?: ImageOptions): Promise<Float32Array>;
  embedImages(images: readonly ImageInput[], options?: ImageOptions): Promise<Vectors>;
  async embedImages(
    images: ImageInput | readonly ImageInput[],
    options: ImageOptions = {},
  ): Promise<Float32Array | Vectors> {
    if (typeof images === "string" || images instanceof Uint8Array) {
      return (await this.embedImages([images], options))[0] as Float32Array;
    }
    checkNames(options, IMAGE_OPTIONS);
    const batches = splitImages(images, this.#settings.batchSize);
    if (batches.length === 0) return this.#noVectors();
    const params = this.#params(options, batches.length);
    const parts = await this.#run(batches, params, async (batch, call) => {
      const request = embedRequest(batch, params, this.#spaceGuard.pinned);
      const response = await this.#sendOnly(request, params, call);
      const vectors = parseVectors(response, batch.length);
      this.#spaceGuard.check(vectors.space, params.model);
      return vectors;
    });
    return concatenate(parts);
  }

  /**
   * Computes sparse vectors of texts, in order.
   * @throws {TypeError} `texts` is neither a string nor a list of strings.
   */
  embedSparse(text: string, options?: SparseOptions): Promise<SparseVector>;
  embedSparse(texts: readonly string[], options?: SparseOptions): Promise<SparseVector[]>;
  async embedSparse(
    texts: string | readonly string[],
    options: SparseOptions = {},
  ): Promise<SparseVector | SparseVector[]> {
    if (typeof texts === "string") {
      return (await this.embedSparse([texts], options))[0] as SparseVector;
    }
    checkNames(options, SPARSE_OPTIONS);
    const batches = this.#split("texts", texts);
    const params = this.#params(options, batches.length);
    const parts = await this.#run(batches, params, async (batch, call) => {
      const response = await this.#sendOnly(sparseRequest(batch, params), params, call);
      const space = response.headers.get("x-embedding-space") ?? undefined;
      this.#sparseSpaceGuard.check(space, params.model);
      return parseSparseVectors(response, batch.length);
    });
    return parts.flat();
  }

  /**
   * Ranks documents by their relevance to a query, which a reranker judges; best first.
   * @throws {TypeError} `documents` isn't a list of strings, or `topN` isn't a positive integer.
   */
  async rerank(
    query: string,
    documents: readonly string[],
    options: RerankOptions = {},
  ): Promise<RerankResult[]> {
    checkNames(options, RERANK_OPTIONS);
    const { topN } = options;
    if (topN !== undefined) checkIntegers({ topN }, ["topN"], 1);
    const batches = this.#split("documents", documents);
    const params = this.#params(options, batches.length);
    const rankings = await this.#run(batches, params, async (batch, call) => {
      const request = rerankRequest(query, batch, params);
      return parseRanking(await this.#sendOnly(request, params, call), batch, topN);
    });
    return mergeRankings(rankings, this.#settings.batchSize, topN);
  }

  /**
   * Classifies texts, in order: all labels of each, with their scores; the best first.
   * @throws {TypeError} `texts` is neither a string nor a list of strings.
   */
  classify(text: string, options?: ClassifyOptions): Promise<LabelScore[]>;
  classify(texts: readonly string[], options?: ClassifyOptions): Promise<LabelScore[][]>;
  async classify(
    texts: string | readonly string[],
    options: ClassifyOptions = {},
  ): Promise<LabelScore[] | LabelScore[][]> {
    if (typeof texts === "string") {
      return (await this.classify([texts], options))[0] as LabelScore[];
    }
    checkNames(options, CLASSIFY_OPTIONS);
    const batches = this.#split("texts", texts);
    const params = this.#params(options, batches.length);
    const parts = await this.#run(batches, params, async (batch, call) =>
      parseLabels(await this.#sendOnly(classifyRequest(batch, params), params, call), batch.length),
    );
    return parts.flat();
  }

  /**
   * Returns the health of the service, or of a model: `status` is `ok`, `degraded` or `unavailable`.
   * It isn't retried, and its default timeout is 5 s.
   */
  async health(options: ModelOptions = {}): Promise<Health> {
    const call = { ...options, timeoutMs: options.timeoutMs ?? HEALTH_TIMEOUT_MS };
    const request = healthRequest(options.model ?? this.#model);
    return parseHealth(await this.#get(request, call, { ...this.#settings, maxRetries: 0 }));
  }

  /** Returns whether the service is reachable and can compute; see `health`. */
  async isHealthy(options: ModelOptions = {}): Promise<boolean> {
    try {
      return ["ok", "degraded"].includes((await this.health(options)).status);
    } catch (error) {
      if (error instanceof EmbedError) return false;
      throw error;
    }
  }

  /** Returns what is served: model, dimensions, space, engine, versions. */
  async info(options: ModelOptions = {}): Promise<Info> {
    return parseInfo(await this.#get(infoRequest(options.model ?? this.#model), options));
  }

  /** Returns the names of the served models. */
  async models(options: CallOptions = {}): Promise<string[]> {
    checkNames(options, CALL_OPTIONS);
    return parseModelNames(await this.#get(MODELS_REQUEST, options));
  }

  /** @throws {TypeError} `items` isn't a list of strings. */
  #split(name: string, items: readonly string[]): string[][] {
    if (!Array.isArray(items) || !items.every((item) => typeof item === "string")) {
      throw new TypeError(`\`${name}\` must be a list of strings.`);
    }
    const { batchSize } = this.#settings;
    const batches: string[][] = [];
    for (let i = 0; i < items.length; i += batchSize) batches.push(items.slice(i, i + batchSize));
    return batches;
  }

  /** Returns the options of the requests of a call. */
  #params<O extends RerankOptions>(options: O, requests: number) {
    // The last batch may be short, but it isn't interactive either.
    const lane = options.lane ?? (requests > 1 ? "bulk" : undefined);
    return { ...options, model: options.model ?? this.#model, lane };
  }

  #noVectors(): Vectors {
    const { space } = this;
    return withInfo([], {
      space,
      model: undefined,
      source: "service",
      tokens: 0,
      truncated: [],
      cached: 0,
      costUsd: undefined,
    });
  }

  /** Calls `work` for the batches of a call, concurrently. */
  async #run<B, R>(
    batches: readonly B[],
    { signal }: CallOptions,
    work: (batch: B, call: Deadline) => Promise<R>,
  ): Promise<R[]> {
    const call = new Deadline(Infinity, signal);
    try {
      const { concurrency } = this.#settings;
      return await mapConcurrently(batches, concurrency, call, (batch) => work(batch, call));
    } finally {
      call.abort();
    }
  }

  async #get(request: Request, options: ModelOptions, policy?: RetryPolicy): Promise<Response> {
    checkNames(options, MODEL_OPTIONS);
    const send = (_: Request, call: Deadline) => this.#send(request, options, call, policy);
    return (await this.#run([request], options, send))[0] as Response;
  }

  /** Sends a request that no fallback can replace. */
  async #sendOnly(request: Request, options: CallOptions, call: Deadline): Promise<Response> {
    try {
      return await this.#send(request, options, call);
    } catch (error) {
      if (this.#fallback && isUnavailable(error)) {
        (error as EmbedError).message += " The fallback only embeds texts.";
      }
      throw error;
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
