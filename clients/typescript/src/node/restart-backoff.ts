/** The number of restarts of a process, and the delays between them. */

const MAX_DELAY_MS = 30_000;
/** After this uptime, a crash doesn't count as a failure in a row. */
const STABLE_MS = 60_000;

/** Exponential backoff of restarts. */
export class RestartBackoff {
  readonly #delayMs: number;
  readonly #maxRestarts: number;
  #restarts = 0;
  #inRow = 0;

  /**
   * @param delayMs milliseconds before the first restart; doubles with each failure in a row
   * @param maxRestarts the number of restarts in a row
   */
  constructor(delayMs: number, maxRestarts: number) {
    this.#delayMs = delayMs;
    this.#maxRestarts = maxRestarts;
  }

  /** The total number of restarts. */
  get restarts(): number {
    return this.#restarts;
  }

  /** The number of restarts in a row. */
  get inRow(): number {
    return this.#inRow;
  }

  /**
   * Counts a restart and returns the milliseconds before it; undefined: the limit is reached.
   * @param uptimeMs how long the process was ready
   */
  next(uptimeMs: number): number | undefined {
    if (uptimeMs >= STABLE_MS) this.#inRow = 0;
    if (this.#inRow >= this.#maxRestarts) return undefined;
    this.#restarts++;
    return Math.min(MAX_DELAY_MS, this.#delayMs * 2 ** this.#inRow++);
  }
}
