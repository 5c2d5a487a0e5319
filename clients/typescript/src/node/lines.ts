/** Lines out of the chunks that a pipe hands over. */

const NEWLINE = 10;
/** Below the longest string that the engine can hold, in bytes. */
const LONGEST = 256 * 2 ** 20;

/** Puts lines together; characters may be split over chunks, too. */
export class Lines {
  readonly #onLine: (line: string) => void;
  readonly #onDropped: () => void;
  readonly #longest: number;
  #parts: Buffer[] = [];
  #size = 0;

  /** @param onDropped called for each line that is too long to be held */
  constructor(onLine: (line: string) => void, onDropped = () => {}, longest = LONGEST) {
    this.#onLine = onLine;
    this.#onDropped = onDropped;
    this.#longest = longest;
  }

  /** Takes what came. */
  push(chunk: Buffer): void {
    let start = 0;
    for (let end; (end = chunk.indexOf(NEWLINE, start)) >= 0; start = end + 1) {
      this.#take(chunk.subarray(start, end));
      this.#finish();
    }
    this.#take(chunk.subarray(start));
  }

  /** Takes what is left for a line of its own. */
  end(): void {
    if (this.#size > 0) this.#finish();
  }

  #take(part: Buffer): void {
    this.#size += part.length;
    if (this.#size > this.#longest) this.#parts = [];
    else this.#parts.push(part);
  }

  #finish(): void {
    const [parts, size] = [this.#parts, this.#size];
    this.#parts = [];
    this.#size = 0;
    if (size > this.#longest) this.#onDropped();
    else this.#onLine(Buffer.concat(parts).toString("utf8").replace(/\r$/, ""));
  }
}
