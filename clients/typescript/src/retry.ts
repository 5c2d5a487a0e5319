/** When a request is tried again. */

import type { Deadline } from "./deadline.js";
import { HttpError, NetworkError } from "./errors.js";

/** How often, and how soon. */
export interface RetryOptions {
  /** Tries after the first. */
  readonly retryAttempts: number;
  /** The most milliseconds before the second try; doubled for each further one. */
  readonly retryDelay: number;
}

/**
 * Tries until it works: again after network errors, 429 and 5xx, never after another 4xx.
 *
 * Waits grow exponentially with full jitter, so that clients that failed together don't come back
 * together, and are no shorter than the service's Retry-After.
 * @throws the last try's error; at once where the next try would come after the deadline.
 */
export async function retrying<T>(
  attempt: () => Promise<T>,
  { retryAttempts, retryDelay }: RetryOptions,
  deadline: Deadline,
): Promise<T> {
  for (let tries = 0; ; tries++) {
    try {
      return await attempt();
    } catch (error) {
      deadline.check();
      if (tries >= retryAttempts || !isTransient(error)) throw error;
      const jitter = Math.random() * retryDelay * 2 ** tries;
      const wait = jitter + ((error instanceof HttpError && error.retryAfterMs) || 0);
      if (wait >= deadline.leftMs) throw error;
      deadline.lastError = error;
      await deadline.sleep(wait);
    }
  }
}

function isTransient(error: unknown): boolean {
  if (error instanceof HttpError) return error.status === 429 || error.status >= 500;
  return error instanceof NetworkError;
}
