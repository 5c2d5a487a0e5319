/** The worker over standard input and output, as a provider of a NestJS application. */

import { StdioWorker } from "../node/stdio-worker.js";
import {
  type StdioWorkerOptions,
  WORKER_DEFAULTS,
  type WorkerStatus,
} from "../node/stdio-worker-options.js";

/** The default timeout of each request in milliseconds. */
export const REQUEST_TIMEOUT_MS: number = WORKER_DEFAULTS.timeoutMs;
/** The default number of restarts in a row, after which each request gets its own process. */
export const MAX_RESTART_ATTEMPTS: number = WORKER_DEFAULTS.maxRestarts;
/** The default delay before the first restart in milliseconds; doubles with each restart. */
export const RESTART_BACKOFF_MS: number = WORKER_DEFAULTS.restartDelayMs;

const COMMAND = ["embedserve", "stdio"];

/**
 * Runs `embedserve stdio` with the service at `EMBEDSERVE_URL`, or else with one that it starts. A
 * script with the modes `server`, `encode-query` and `encode-batch` replaces it:
 * `command: ["python", "script.py"]`.
 */
export class HelpEmbeddingService {
  readonly #worker: StdioWorker;

  /** @throws {TypeError} an option has an invalid value, or there is no such option. */
  constructor(options: StdioWorkerOptions = {}) {
    const hasService = (options.env ?? process.env)["EMBEDSERVE_URL"];
    const command = hasService ? COMMAND : [...COMMAND, "--start"];
    this.#worker = new StdioWorker({ ...options, command: options.command ?? command });
  }

  /**
   * Starts the worker, and waits until it is ready. NestJS calls it.
   * @throws {WorkerError} there is no such program.
   */
  async onModuleInit(): Promise<void> {
    await this.#worker.start();
  }

  /** Stops the worker. NestJS calls it when the application closes. */
  async onModuleDestroy(): Promise<void> {
    await this.#worker.stop();
  }

  /** Embeds a search query; see `StdioWorker.encodeQuery`. */
  async encodeQuery(text: string): Promise<number[]> {
    return Array.from(await this.#worker.encodeQuery(text));
  }

  /** Embeds documents, in order; see `StdioWorker.encodeBatch`. */
  async encodeBatch(texts: readonly string[]): Promise<number[][]> {
    const vectors = await this.#worker.encodeBatch(texts);
    return vectors.map((vector) => Array.from(vector));
  }

  /** Returns the current status of the worker. */
  getStatus(): WorkerStatus {
    return this.#worker.status();
  }
}
