/** Arrays of embedding vectors that carry their space and other metadata. */

/** Metadata of the vectors of one call. */
export interface VectorInfo {
  /** The space of the vectors; undefined: the service doesn't report it, or CORS hides it. */
  readonly space: string | undefined;
  /** The model's name; undefined: no request was needed. */
  readonly model: string | undefined;
  /** Where the vectors were computed: by the service, or by its fallback. */
  readonly source: "service" | "local";
  /** The total of the model's tokens, after truncation. */
  readonly tokens: number;
  /** Positions of texts that exceeded the token limit; undefined: unknown, like `space`. */
  readonly truncated: readonly number[] | undefined;
  /** The number of texts whose vectors were cached; undefined: unknown, like `space`. */
  readonly cached: number | undefined;
  /** In US dollars; undefined: the model has no price, or unknown, like `space`. */
  readonly costUsd: number | undefined;
}

/**
 * An array with one `Float32Array` per text, and metadata in `info`. `structuredClone` and
 * `postMessage` preserve `space` and `info`; the results of `map`, `slice` etc. are plain arrays.
 */
export interface Vectors extends Array<Float32Array> {
  readonly info: VectorInfo;
  /** The same as `info.space`. */
  readonly space: string | undefined;
  /** The same as `info.source`. */
  readonly source: "service" | "local";
}

/**
 * Attaches metadata to vectors.
 * @internal
 */
export function withInfo(rows: Float32Array[], info: VectorInfo): Vectors {
  return Object.assign(rows, { space: info.space, source: info.source, info });
}

/**
 * Concatenates the vectors of one call that was split into several requests.
 * @internal
 */
export function concatenate(parts: readonly Vectors[]): Vectors {
  const [first] = parts;
  if (first && parts.length === 1) return first;
  const truncated: number[] = [];
  let offset = 0;
  for (const { length, info } of parts) {
    for (const position of info.truncated ?? []) truncated.push(offset + position);
    offset += length;
  }
  const infos = parts.map(({ info }) => info);
  const isKnown = infos.every((info) => info.truncated !== undefined);
  const costs = infos.map((info) => info.costUsd).filter((cost) => cost !== undefined);
  return withInfo(parts.flat(), {
    space: first?.space,
    model: first?.info.model,
    source: parts.some(({ source }) => source === "local") ? "local" : "service",
    tokens: sum(infos.map((info) => info.tokens)),
    truncated: isKnown ? truncated : undefined,
    cached: infos.every((info) => info.cached !== undefined)
      ? sum(infos.map((info) => info.cached ?? 0))
      : undefined,
    // Costs are whole nano-dollars.
    costUsd: costs.length > 0 ? Number(sum(costs).toFixed(9)) : undefined,
  });
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0);
}
