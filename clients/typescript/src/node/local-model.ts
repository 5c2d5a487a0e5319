/** A model on this machine, in a process of its own: the fallback of a client. */

import { ParseError, WorkerError } from "../errors.js";
import type { FallbackModel } from "../fallback.js";
import type { EmbedOptions } from "../options.js";
import { type Vectors, withInfo } from "../vectors.js";
import { asRecord, checkEqualLengths, parseVector } from "../wire.js";
import { StdioWorker } from "./stdio-worker.js";
import type { StdioWorkerOptions } from "./stdio-worker-options.js";

/**
 * Runs `embedserve stdio --local`, which needs the extra `local` of the Python package. The process
 * starts with the first call and ends with `stop` or this program.
 *
 * It computes at fp32 in the space of a service that serves the same model.
 */
export class LocalModel implements FallbackModel {
  readonly #worker: StdioWorker;

  /**
   * Creates a model without starting its process.
   * @param source a directory, or `package:<module>`. Default: `EMBEDSERVE_LOCAL_MODEL`, or the
   *   service's default model
   * @param options of the process; `command` replaces `embedserve stdio --local`
   * @throws {TypeError} an option has an invalid value, or there is no such option.
   */
  constructor(source?: string, options: StdioWorkerOptions = {}) {
    const command = ["embedserve", "stdio", "--local", ...(source === undefined ? [] : [source])];
    // A failed start is an error of the call; the next call starts the process again.
    this.#worker = new StdioWorker({ command, maxRestarts: 0, ...options });
  }

  /**
   * Embeds texts; `lane` and `useCache` have no effect.
   * @throws {WorkerError} the model can't be loaded, or doesn't support an option or a text.
   */
  async embed(texts: readonly string[], options: EmbedOptions = {}): Promise<Vectors> {
    const { signal, timeoutMs, truncation = "end", normalize, inputType, dimensions } = options;
    if (truncation !== "end" || normalize === false) {
      const option = normalize === false ? "normalize: false" : `truncation: ${truncation}`;
      throw new WorkerError(`A local model doesn't support \`${option}\`.`);
    }
    // A process for each request can't tell the space of its vectors.
    if ((await this.#worker.start({ signal })).state === "one-shot") await this.#fail();
    const params = { texts, input_type: inputType, dimensions };
    const result = await this.#worker.request({ command: "embed", params }, { signal, timeoutMs });
    const { vectors, space, model } = asRecord(result);
    if (!Array.isArray(vectors) || vectors.length !== texts.length || typeof space !== "string") {
      throw new ParseError("The local model returned no vectors with a space.");
    }
    const rows = vectors.map(parseVector);
    checkEqualLengths(rows);
    return withInfo(rows, {
      space,
      model: typeof model === "string" ? model : undefined,
      source: "local",
      tokens: 0,
      truncated: undefined,
      cached: undefined,
      costUsd: undefined,
    });
  }

  /** Stops the process. */
  stop(): Promise<void> {
    return this.#worker.stop();
  }

  async #fail(): Promise<never> {
    const { lastError } = this.#worker.status();
    await this.#worker.stop();
    throw new WorkerError(`The local model can't be used: ${lastError?.message}`, {
      cause: lastError,
    });
  }
}
