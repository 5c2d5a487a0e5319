/** The client of a service that runs. */

import { Deadline } from "./deadline.js";
import { type Embeddings, embeddings, joined } from "./embeddings.js";
import { gather } from "./gather.js";
import { Http } from "./http.js";
import {
  atLeast,
  type CallOptions,
  type ClientOptions,
  type EmbedOptions,
  type Settings,
  settings,
} from "./options.js";
import { retrying } from "./retry.js";
import { SpaceGuard } from "./space.js";
import {
  embedBody,
  type Health,
  type Info,
  type Model,
  type Reply,
  readEmbeddings,
  readHealth,
  readInfo,
  readModels,
} from "./wire.js";

/**
 * Asks a running service, from Node or from a browser. One is enough for a program: it holds no
 * connection of its own and may be used by many calls at once.
 *
 * Every method rejects with an `EmbedError`: `NetworkError`, `TimeoutError`, `HttpError` (an
 * `OverloadedError` at 429) or `ParseError`; those that embed also with `SpaceMismatchError`. With
 * a `signal` they reject with its reason as soon as it aborts.
 */
export class EmbedClient {
  readonly #settings: Settings;
  readonly #model: string | undefined;
  readonly #http: Http;
  readonly #guard: SpaceGuard;

  /** @throws {TypeError} an option can't be used. */
  constructor(options: ClientOptions = {}) {
    this.#settings = settings(options);
    this.#model = options.model;
    this.#http = new Http(this.#settings.url, options.apiKey, options.fetch);
    this.#guard = new SpaceGuard(options.expectSpace, options.allowMixedSpaces !== true);
  }

  /** Where the service is. */
  get url(): string {
    return this.#settings.url;
  }

  /** The space that vectors are held to; undefined: none came yet, or the service doesn't say. */
  get space(): string | undefined {
    return this.#guard.held;
  }

  /**
   * Vectors of texts, in their order. Long lists go in several requests; the first that fails ends
   * the others. An empty list needs no request.
   * @throws {TypeError} `texts` isn't a list of strings.
   */
  async embed(texts: readonly string[], options: EmbedOptions = {}): Promise<Embeddings> {
    if (!Array.isArray(texts) || !texts.every((text) => typeof text === "string")) {
      throw new TypeError("texts must be a list of strings.");
    }
    if (texts.length === 0) {
      return embeddings([], { space: this.space, model: undefined, tokens: 0, truncated: [] });
    }
    const { batchSize, concurrency } = this.#settings;
    const asked = { ...options, model: options.model ?? this.#model };
    const batches: string[][] = [];
    for (let i = 0; i < texts.length; i += batchSize) batches.push(texts.slice(i, i + batchSize));
    return this.#within(options, async (deadline) =>
      joined(
        await gather(batches, concurrency, deadline, async (batch) => {
          const reply = await this.#ask(deadline, "/v1/embeddings", embedBody(batch, asked));
          const found = readEmbeddings(reply, batch.length);
          this.#guard.check(found.space);
          return found;
        }),
      ),
    );
  }

  /** As `embed`; `normalize`: vectors of unit length, else as the model gives them. */
  embedBatch(
    texts: readonly string[],
    normalize = true,
    options: CallOptions = {},
  ): Promise<Embeddings> {
    return this.embed(texts, { ...options, normalize });
  }

  /** The vector of what somebody looks for. */
  async embedQuery(text: string, options: EmbedOptions = {}): Promise<Float32Array> {
    const [found] = await this.embed([text], { inputType: "query", ...options });
    return found as Float32Array;
  }

  /** The vectors of what is to be found. */
  embedDocuments(texts: readonly string[], options: EmbedOptions = {}): Promise<Embeddings> {
    return this.embed(texts, { inputType: "document", ...options });
  }

  /** That the service can embed right now; if not, an `HttpError` (503) says why. */
  async checkHealth(options: CallOptions = {}): Promise<Health> {
    return readHealth(await this.#get("/health", options));
  }

  /** What is served, and what runs it. */
  async info(options: CallOptions = {}): Promise<Info> {
    return readInfo(await this.#get("/info", options));
  }

  /** The model, under each of its names. */
  async models(options: CallOptions = {}): Promise<Model[]> {
    return readModels(await this.#get("/v1/models", options));
  }

  #get(path: string, options: CallOptions): Promise<Reply> {
    return this.#within(options, (deadline) => this.#ask(deadline, path));
  }

  #ask(deadline: Deadline, path: string, body?: string): Promise<Reply> {
    return retrying(() => this.#http.request(path, body, deadline), this.#settings, deadline);
  }

  async #within<T>(options: CallOptions, work: (deadline: Deadline) => Promise<T>): Promise<T> {
    const timeout = atLeast("timeout", options.timeout ?? this.#settings.timeout, 0);
    const deadline = new Deadline(timeout, options.signal);
    try {
      return await work(deadline);
    } finally {
      deadline.end();
    }
  }
}
