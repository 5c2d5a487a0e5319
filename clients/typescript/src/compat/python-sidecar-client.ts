/** The client of a sidecar: `GET /health`, and `POST /embed` with `texts`. */

import { Client } from "../client.js";
import { Deadline } from "../deadline.js";
import { environmentVariable } from "../environment.js";
import { EmbedError, HTTPError, NetworkError, ParseError, RequestTimeoutError } from "../errors.js";
import { createLog, type Log, type Logger } from "../log.js";
import { mapConcurrently } from "../map-concurrently.js";
import {
  checkIntegers,
  checkNames,
  checkNumbers,
  CLIENT_DEFAULTS,
  type OptionNames,
  withDefaults,
} from "../options.js";
import { sendWithRetries } from "../retry.js";
import { SpaceGuard } from "../space.js";
import { Transport } from "../transport.js";
import { asRecord, checkEqualLengths, parseVector } from "../wire.js";
import { fetchAfterRestart } from "./restarts.js";

/** @internal */
export const SIDECAR_PORT = 8421;
const DEFAULTS = { timeout: 30_000, retryAttempts: 2, retryDelay: 1000 };

/** Options of a sidecar's client; all are optional. */
export interface PythonSidecarClientOptions {
  /** The URL without a port. Default: `http://127.0.0.1`. */
  readonly baseUrl?: string | undefined;
  /** The port. Default: that of `baseUrl`, or 8421. */
  readonly port?: number | undefined;
  /**
   * The timeout of each request in milliseconds, retries and the wait for a restart included.
   * Default: 30000.
   */
  readonly timeout?: number | undefined;
  /** Retries after network errors, 429 and 5xx. Default: 2. */
  readonly retryAttempts?: number | undefined;
  /** The maximum delay before the first retry in milliseconds; doubles with each. Default: 1000. */
  readonly retryDelay?: number | undefined;
  /** Receives requests and retries. Category: `SIDECAR-CLIENT`. */
  readonly logger?: Logger | undefined;
}

const OPTIONS: OptionNames<PythonSidecarClientOptions> = {
  baseUrl: true,
  port: true,
  timeout: true,
  retryAttempts: true,
  retryDelay: true,
  logger: true,
};

/** A request to the sidecar failed; `cause` is the error of this package. */
export class PythonSidecarError extends Error {
  readonly type: "NETWORK_ERROR" | "TIMEOUT" | "HTTP_ERROR" | "PARSE_ERROR";
  /** The same as `type`. */
  readonly code: string;
  /** The HTTP status of an `HTTP_ERROR`. */
  readonly status: number | undefined;

  constructor(error: EmbedError) {
    super(error.message, { cause: error });
    this.name = "PythonSidecarError";
    this.type = errorType(error);
    this.code = this.type;
    this.status = error instanceof HTTPError ? error.status : undefined;
  }
}

/** A client of the sidecar. It waits for a restart by a `PythonSidecarService` of this program. */
export class PythonSidecarClient {
  readonly #settings: typeof DEFAULTS;
  readonly #client: Client;
  readonly #transport: Transport;
  readonly #spaceGuard = new SpaceGuard(undefined, true);
  readonly #log: Log;

  /**
   * @throws {TypeError} an option has an invalid value, or there is no such option.
   * @throws {InvalidURLError} the URL is malformed.
   */
  constructor(options: PythonSidecarClientOptions = {}) {
    checkNames(options, OPTIONS);
    this.#settings = withDefaults(DEFAULTS, options);
    checkNumbers(this.#settings, ["timeout", "retryDelay"]);
    checkIntegers(this.#settings, ["retryAttempts"], 0);
    this.#log = createLog(options.logger, "SIDECAR-CLIENT");
    this.#client = new Client({ baseUrl: urlOf(options), logger: this.#log });
    const apiKey = environmentVariable("EMBEDSERVE_API_KEY");
    this.#transport = new Transport(this.#client.baseUrl, apiKey, fetchAfterRestart, this.#log);
  }

  /** Returns whether the sidecar can embed, with or without its shared cache; never rejects. */
  async checkHealth(): Promise<boolean> {
    return this.#client.isHealthy({ timeoutMs: this.#settings.timeout }).catch(() => false);
  }

  /**
   * Embeds texts, in order. A long list is split into several requests.
   * @param normalize false: vectors as the model returns them
   * @throws {PythonSidecarError} the sidecar can't be reached, or rejects the texts.
   * @throws {SpaceMismatchError} the vectors can't be compared with earlier ones.
   */
  async embedBatch(texts: readonly string[], normalize = true): Promise<number[][]> {
    const { batchSize, concurrency } = CLIENT_DEFAULTS;
    const batches: (readonly string[])[] = [];
    for (let i = 0; i < texts.length; i += batchSize) batches.push(texts.slice(i, i + batchSize));
    const call = new Deadline(this.#settings.timeout);
    try {
      const rows = await mapConcurrently(batches, concurrency, call, (batch) =>
        this.#embed(batch, normalize, call),
      );
      return rows.flat();
    } catch (error) {
      const isKnown = error instanceof EmbedError && error.code !== "SPACE_MISMATCH";
      throw isKnown ? new PythonSidecarError(error) : error;
    } finally {
      call.abort();
    }
  }

  async #embed(texts: readonly string[], normalize: boolean, call: Deadline): Promise<number[][]> {
    const headers = { "content-type": "application/json" };
    const request = { path: "/embed", headers, body: JSON.stringify({ texts, normalize }) };
    const { retryAttempts: maxRetries, retryDelay: retryDelayMs } = this.#settings;
    const maxRetryDelayMs = Math.max(CLIENT_DEFAULTS.maxRetryDelayMs, retryDelayMs);
    const response = await sendWithRetries(
      () => this.#transport.send(request, call),
      { maxRetries, retryDelayMs, maxRetryDelayMs },
      call,
      this.#log,
    );
    const { vectors } = asRecord(response.body);
    if (!Array.isArray(vectors) || vectors.length !== texts.length) {
      throw new ParseError(`The sidecar returned no list of ${texts.length} vectors.`);
    }
    checkEqualLengths(vectors.map(parseVector));
    this.#spaceGuard.check(response.headers.get("x-embedding-space") ?? undefined);
    return vectors as number[][];
  }
}

function urlOf({ baseUrl = "http://127.0.0.1", port }: PythonSidecarClientOptions): string {
  if (port !== undefined) checkIntegers({ port }, ["port"], 1);
  if (!URL.canParse(baseUrl)) return baseUrl; // the client's error says what is wrong
  const url = new URL(baseUrl);
  if (port !== undefined || url.port === "") url.port = String(port ?? SIDECAR_PORT);
  return url.href;
}

function errorType(error: EmbedError): PythonSidecarError["type"] {
  if (error instanceof NetworkError) return "NETWORK_ERROR";
  if (error instanceof RequestTimeoutError) return "TIMEOUT";
  return error instanceof HTTPError ? "HTTP_ERROR" : "PARSE_ERROR";
}
