/** The time that a call has, and everything that ends with it. */

import { TimeoutError } from "./errors.js";

/** The longest that a timer can be set to, in milliseconds; what is longer never ends. */
const LONGEST_MS = 2 ** 31 - 1;

/**
 * Ends once: when the time is over, when the caller's signal aborts, or when it is told to.
 *
 * It isn't an `AbortSignal`, since Node warns of a leak when many things wait for one of these.
 * @internal
 */
export class Deadline {
  readonly #end: number;
  readonly #watchers = new Set<() => void>();
  readonly #release: () => void;
  #ended: { readonly reason: unknown } | undefined;
  /** The last error that was overcome; the cause of a timeout. */
  lastError: unknown;

  /**
   * @param timeoutMs milliseconds from now
   * @param signal the caller's
   */
  constructor(timeoutMs: number, signal?: AbortSignal | undefined) {
    this.#end = performance.now() + timeoutMs;
    const expire = () =>
      this.end(
        new TimeoutError(`The call's ${timeoutMs} ms ran out.`, { cause: this.lastError }),
      );
    const timer = timeoutMs > LONGEST_MS ? undefined : setTimeout(expire, timeoutMs);
    const abort = () => this.end(signal?.reason);
    signal?.addEventListener("abort", abort);
    this.#release = () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", abort);
    };
    if (signal?.aborted) abort();
  }

  /** Milliseconds left; none when it has ended. */
  get leftMs(): number {
    return this.#ended ? 0 : Math.max(0, this.#end - performance.now());
  }

  /** Ends it, with the reason that everything that waits is rejected with. */
  end(reason?: unknown): void {
    if (this.#ended) return;
    this.#ended = { reason };
    this.#release();
    for (const watcher of this.#watchers) watcher();
    this.#watchers.clear();
  }

  /** @throws the reason, if it has ended. */
  check(): void {
    if (this.#ended) throw this.#ended.reason;
  }

  /** Calls back when it ends; at once if it has. Returns what takes that back. */
  onEnd(watcher: () => void): () => void {
    if (this.#ended) watcher();
    else this.#watchers.add(watcher);
    return () => this.#watchers.delete(watcher);
  }

  /**
   * What `work` comes to, or a rejection with the reason as soon as it has ended. `work` gets a
   * signal that is aborted then, and in no other case.
   */
  async race<T>(work: (signal: AbortSignal) => Promise<T>): Promise<T> {
    this.check();
    const aborter = new AbortController();
    let off: (() => void) | undefined;
    const ended = new Promise<never>((_, reject) => {
      off = this.onEnd(() => {
        reject(this.#ended?.reason);
        aborter.abort(this.#ended?.reason);
      });
    });
    try {
      return await Promise.race([ended, work(aborter.signal)]);
    } finally {
      off?.();
    }
  }

  /** Waits. Rejects with the reason when it ends meanwhile. */
  async sleep(ms: number): Promise<void> {
    let timer: ReturnType<typeof setTimeout> | undefined;
    try {
      await this.race(() => new Promise((resolve) => (timer = setTimeout(resolve, ms))));
    } finally {
      clearTimeout(timer);
    }
  }
}
