/** How often something that crashes is started again, and how soon. */

/** The longest wait, in milliseconds. */
const LONGEST_MS = 30_000;
/** Milliseconds after which it counts as one that stays up. */
const STEADY_MS = 60_000;

/** Counts restarts in a row. */
export class Restarts {
  readonly #delay: number;
  readonly #most: number;
  #inRow = 0;

  /**
   * @param delay milliseconds before the first; doubled for each further one in a row
   * @param most in a row
   */
  constructor(delay: number, most: number) {
    this.#delay = delay;
    this.#most = most;
  }

  /** In a row, up to now. */
  get inRow(): number {
    return this.#inRow;
  }

  /**
   * Milliseconds before the next one; undefined: there is none.
   * @param upMs how long it was up, in milliseconds
   */
  next(upMs: number): number | undefined {
    if (upMs >= STEADY_MS) this.#inRow = 0;
    if (this.#inRow >= this.#most) return undefined;
    return Math.min(LONGEST_MS, this.#delay * 2 ** this.#inRow++);
  }
}
