/** Vectors while the service is unavailable. */

import {
  type EmbedError,
  NetworkError,
  RequestTimeoutError,
  ServerError,
  ServiceNotRunningError,
} from "./errors.js";
import type { Log } from "./log.js";
import type { EmbedOptions } from "./options.js";
import type { Vectors } from "./vectors.js";

const FIRST_PAUSE_MS = 1000;
const MAX_PAUSE_MS = 30_000;

/** Computes vectors in place of the service: `LocalModel` of `embedserve-client/node`. */
export interface FallbackModel {
  /** @throws {EmbedError} the model can't be used, or doesn't support an option. */
  embed(texts: readonly string[], options?: EmbedOptions): Promise<Vectors>;
}

/**
 * Returns whether an error means that the service is down, not that it rejected the request.
 * @internal
 */
export function isUnavailable(error: unknown): boolean {
  return [NetworkError, RequestTimeoutError, ServerError, ServiceNotRunningError].some(
    (Class) => error instanceof Class,
  );
}

/**
 * A circuit breaker. After a failure of the service, the fallback is used for a pause, which
 * doubles with each further failure. Then one caller checks the health of the service.
 * @internal
 */
export class CircuitBreaker {
  readonly #log: Log;
  #failures = 0;
  #probeAt = 0;

  constructor(log: Log) {
    this.#log = log;
  }

  /** Calls the service, or the fallback while the service is unavailable. */
  async call<T>(
    service: () => Promise<T>,
    isHealthy: () => Promise<boolean>,
    fallback: () => Promise<T>,
  ): Promise<T> {
    if (this.#failures > 0) {
      if (performance.now() < this.#probeAt) return fallback();
      this.#open(); // so that concurrent callers don't probe as well
      if (!(await isHealthy())) return fallback();
    }
    try {
      const result = await service();
      if (this.#failures > 0) this.#log.info("The service is back.");
      this.#failures = 0;
      return result;
    } catch (error) {
      if (!isUnavailable(error)) throw error;
      if (this.#failures === 0) {
        const { code } = error as EmbedError;
        this.#log.info(`The service is unavailable (${code}): the fallback computes meanwhile.`);
      }
      // Only the first of several concurrent failures counts.
      if (performance.now() >= this.#probeAt) this.#open();
      return fallback();
    }
  }

  #open(): void {
    const pauseMs = Math.min(MAX_PAUSE_MS, FIRST_PAUSE_MS * 2 ** this.#failures++);
    this.#probeAt = performance.now() + pauseMs;
  }
}
