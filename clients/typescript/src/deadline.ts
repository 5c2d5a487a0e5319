/** Timeouts and cancellation of everything that belongs to one call. */

import { RequestTimeoutError } from "./errors.js";

/** The maximum of `setTimeout`; longer timeouts never expire. */
const MAX_TIMER_MS = 2 ** 31 - 1;

/**
 * Aborts once: when its timeout expires, when the caller's signal aborts, or by `abort`.
 *
 * It isn't an `AbortSignal`, because Node warns of a leak when many listeners wait for one signal.
 */
export class Deadline {
  readonly #expiresAt: number;
  readonly #listeners = new Set<() => void>();
  readonly #release: () => void;
  #aborted: { readonly reason: unknown } | undefined;
  /** The error of the last failed attempt, which becomes the `cause` of a timeout. */
  lastError: unknown;

  /** Starts a timeout; Infinity: none. */
  constructor(timeoutMs: number, signal?: AbortSignal | undefined) {
    this.#expiresAt = performance.now() + timeoutMs;
    const expire = () => {
      this.abort(
        new RequestTimeoutError(`Timed out after ${timeoutMs} ms.`, { cause: this.lastError }),
      );
    };
    const timer = timeoutMs > MAX_TIMER_MS ? undefined : setTimeout(expire, timeoutMs);
    const onSignal = () => this.abort(signal?.reason);
    signal?.addEventListener("abort", onSignal);
    this.#release = () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", onSignal);
    };
    if (signal?.aborted) onSignal();
  }

  /** Returns a deadline with a timeout of its own that aborts with this one at the latest. */
  child(timeoutMs: number): Deadline {
    const child = new Deadline(timeoutMs);
    const unsubscribe = this.onAbort(() => child.abort(this.#aborted?.reason));
    child.onAbort(unsubscribe);
    return child;
  }

  /** Milliseconds until the timeout; 0 after an abort. */
  get remainingMs(): number {
    return this.#aborted ? 0 : Math.max(0, this.#expiresAt - performance.now());
  }

  /** Rejects everything that waits with a reason, and releases the timer and the signal. */
  abort(reason?: unknown): void {
    if (this.#aborted) return;
    this.#aborted = { reason };
    this.#release();
    for (const listener of this.#listeners) listener();
    this.#listeners.clear();
  }

  /** Throws the reason if it has aborted. */
  throwIfAborted(): void {
    if (this.#aborted) throw this.#aborted.reason;
  }

  /** Calls `listener` on an abort, or at once after one. Returns a function that unsubscribes. */
  onAbort(listener: () => void): () => void {
    if (this.#aborted) listener();
    else this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /**
   * Runs `work` and returns its result; rejects with the reason on an abort. The signal that `work`
   * receives aborts only then.
   */
  async race<T>(work: (signal: AbortSignal) => Promise<T>): Promise<T> {
    this.throwIfAborted();
    const controller = new AbortController();
    let unsubscribe: (() => void) | undefined;
    const aborted = new Promise<never>((_, reject) => {
      unsubscribe = this.onAbort(() => {
        reject(this.#aborted?.reason);
        controller.abort(this.#aborted?.reason);
      });
    });
    try {
      return await Promise.race([aborted, work(controller.signal)]);
    } finally {
      unsubscribe?.();
    }
  }

  /** Resolves after `ms` milliseconds; rejects with the reason on an abort. */
  async sleep(ms: number): Promise<void> {
    let timer: ReturnType<typeof setTimeout> | undefined;
    try {
      await this.race(() => new Promise((resolve) => (timer = setTimeout(resolve, ms))));
    } finally {
      clearTimeout(timer);
    }
  }
}
