/** Splits the chunks of a pipe into lines. */

const NEWLINE = 10;
/** Below the maximum length of a string in V8. */
const MAX_LINE_BYTES = 256 * 2 ** 20;

/** Decodes UTF-8 lines. Lines and characters may span several chunks. */
export class LineSplitter {
  readonly #onLine: (line: string) => void;
  readonly #onDropped: () => void;
  readonly #maxBytes: number;
  #chunks: Buffer[] = [];
  #size = 0;

  /** @param onDropped called for each line of more than `maxBytes` bytes, which is discarded */
  constructor(onLine: (line: string) => void, onDropped = () => {}, maxBytes = MAX_LINE_BYTES) {
    this.#onLine = onLine;
    this.#onDropped = onDropped;
    this.#maxBytes = maxBytes;
  }

  /** Processes a chunk. */
  push(chunk: Buffer): void {
    let start = 0;
    for (let end; (end = chunk.indexOf(NEWLINE, start)) >= 0; start = end + 1) {
      this.#append(chunk.subarray(start, end));
      this.#flush();
    }
    this.#append(chunk.subarray(start));
  }

  /** Processes the end of the pipe; the last line may lack a newline. */
  end(): void {
    if (this.#size > 0) this.#flush();
  }

  #append(chunk: Buffer): void {
    this.#size += chunk.length;
    if (this.#size > this.#maxBytes) this.#chunks = [];
    else this.#chunks.push(chunk);
  }

  #flush(): void {
    const [chunks, size] = [this.#chunks, this.#size];
    this.#chunks = [];
    this.#size = 0;
    if (size > this.#maxBytes) this.#onDropped();
    else this.#onLine(Buffer.concat(chunks).toString("utf8").replace(/\r$/, ""));
  }
}
