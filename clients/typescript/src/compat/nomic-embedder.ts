/** An embedder that starts its own service, and tells where its vectors come from. */

import { LocalModel } from "../node/local-model.js";
import { Supervisor } from "../node/supervisor.js";
import type { ServiceStatus, SupervisorOptions } from "../node/supervisor-options.js";
import type { VectorInfo, Vectors } from "../vectors.js";

const CONFIG = "nomic";
const MODEL = "nomic-embed-text-v1.5";

/** Options of an embedder; none is needed. */
export interface NomicEmbedderOptions extends SupervisorOptions {
  /** `query` or `document`: the prompt before each text. Default: none. */
  readonly inputType?: string | undefined;
}

/** A vector, with the origin of the vectors of its call. */
export type EmbeddedText = number[] & VectorInfo;
/** Vectors in the order of the texts, with their origin. */
export type EmbeddedTexts = number[][] & VectorInfo;

/**
 * Embeds with nomic-embed-text-v1.5: uses the service on the port, or starts `embedserve serve
 * --standalone nomic` and restarts it after a crash. Another `config` selects another model.
 *
 * If there can be no service and `EMBEDSERVE_LOCAL_MODEL` names the same model, it computes in a
 * process of its own; `source` is then `local`. Vectors of another space are an error.
 */
export class NomicEmbedder {
  readonly #supervisor: Supervisor;
  readonly #fallback: LocalModel | undefined;
  readonly #inputType: string | undefined;

  /** @throws {TypeError} an option has an invalid value, or there is no such option. */
  constructor(options: NomicEmbedderOptions = {}) {
    const { inputType, client, ...rest } = options;
    const isDefault = rest.config === undefined && rest.command === undefined;
    const { env, logger } = rest;
    const localModel = (env ?? process.env)["EMBEDSERVE_LOCAL_MODEL"];
    this.#inputType = inputType;
    this.#fallback = localModel ? new LocalModel(localModel, { env, logger }) : undefined;
    this.#supervisor = new Supervisor({
      ...rest,
      config: rest.config ?? CONFIG,
      client: { model: isDefault ? MODEL : undefined, fallback: this.#fallback, ...client },
    });
  }

  /**
   * Embeds texts, in order, and starts the service if it isn't running.
   * @throws {EmbedError} as `Supervisor.embed` does.
   */
  async embed(texts: readonly string[]): Promise<EmbeddedTexts> {
    const vectors: Vectors = await this.#supervisor.embed(texts, { inputType: this.#inputType });
    return withOrigin(vectors.map((vector) => Array.from(vector)), vectors.info);
  }

  /** Embeds one text; otherwise like `embed`. */
  async embedSingle(text: string): Promise<EmbeddedText> {
    const vectors = await this.embed([text]);
    return withOrigin(vectors[0] as number[], vectors);
  }

  /** Returns the current status of the service. */
  status(): ServiceStatus {
    return this.#supervisor.status();
  }

  /** Stops the processes that this embedder started. They also end with this program. */
  async stop(): Promise<void> {
    await Promise.all([this.#supervisor.stop(), this.#fallback?.stop()]);
  }
}

/** Adds properties that neither a loop, `JSON.stringify` nor a deep comparison sees. */
function withOrigin<T extends object>(
  vectors: T,
  { space, model, source, tokens, truncated, cached, costUsd }: VectorInfo,
): T & VectorInfo {
  const info: VectorInfo = { space, model, source, tokens, truncated, cached, costUsd };
  for (const [name, value] of Object.entries(info)) {
    Object.defineProperty(vectors, name, { value });
  }
  return vectors as T & VectorInfo;
}
