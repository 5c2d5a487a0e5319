/** Retries of failed requests, with exponential backoff and full jitter. */

import type { Deadline } from "./deadline.js";
import { HTTPError, NetworkError, RateLimitError, ServerError } from "./errors.js";
import type { Log } from "./log.js";

/** The number of retries and the delays between them. */
export interface RetryPolicy {
  /** Retries after the first attempt. */
  readonly maxRetries: number;
  /** The upper bound of the first delay in milliseconds; doubles with each retry. */
  readonly retryDelayMs: number;
  /** The upper bound of all delays in milliseconds. */
  readonly maxRetryDelayMs: number;
}

/**
 * Calls `send` until it succeeds, fails permanently, or the deadline expires. Network errors, 429
 * and 5xx are retried; other 4xx responses would only repeat.
 *
 * `Retry-After` is added to the jittered delay, so clients don't return at the same moment.
 * @throws the last error; at once if the next retry would miss the deadline.
 */
export async function sendWithRetries<T>(
  send: () => Promise<T>,
  { maxRetries, retryDelayMs, maxRetryDelayMs }: RetryPolicy,
  deadline: Deadline,
  log: Log,
): Promise<T> {
  for (let attempt = 0; ; attempt++) {
    try {
      return await send();
    } catch (error) {
      deadline.throwIfAborted();
      if (attempt >= maxRetries || !isTransient(error)) throw error;
      const jitterMs = Math.random() * Math.min(maxRetryDelayMs, retryDelayMs * 2 ** attempt);
      const delayMs = jitterMs + ((error instanceof HTTPError && error.retryAfterMs) || 0);
      if (delayMs >= deadline.remainingMs) throw error;
      deadline.lastError = error;
      const retry = `Retry ${attempt + 1} of ${maxRetries} in ${Math.round(delayMs)} ms`;
      log.info(`${retry}: ${describe(error)}`);
      await deadline.sleep(delayMs);
    }
  }
}

/** Describes an error for the log, without the body of a response: it may quote a text. */
function describe(error: unknown): string {
  return error instanceof HTTPError ? `status ${error.status}` : String(error);
}

function isTransient(error: unknown): boolean {
  return [NetworkError, RateLimitError, ServerError].some((Class) => error instanceof Class);
}
