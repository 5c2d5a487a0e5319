/** What goes over the wire, and what is made of what comes back. No I/O happens here. */

import { floatsOfBase64 } from "./base64.js";
import { type Embeddings, embeddings } from "./embeddings.js";
import { HttpError, OverloadedError, ParseError } from "./errors.js";
import type { EmbedOptions } from "./options.js";

const MOST_WORDS = 2000;

/** A good reply, read whole. */
export interface Reply {
  readonly body: unknown;
  readonly headers: Headers;
}

/** What the service says of itself at `/health`. */
export interface Health {
  /** `ok`; `degraded`: it embeds, but its shared cache is away. */
  readonly status: string;
  readonly model: string;
  /** Components of a vector. */
  readonly dim: number;
  /** `cpu`, `cuda`, …; null: not known yet. */
  readonly device: string | null;
  readonly [more: string]: unknown;
}

/** What the service says of itself at `/info`. */
export interface Info {
  readonly model_id: string;
  /** Components of a vector. */
  readonly dim: number;
  readonly device: string | null;
  readonly version: string;
  /** The space of its vectors. */
  readonly space: string;
  readonly [more: string]: unknown;
}

/** A name that a served model answers to. */
export interface Model {
  readonly id: string;
  readonly [more: string]: unknown;
}

/** The body that asks for the vectors of texts. */
export function embedBody(texts: readonly string[], options: EmbedOptions): string {
  // JSON leaves out what is undefined.
  return JSON.stringify({
    input: texts,
    model: options.model,
    encoding_format: "base64",
    input_type: options.inputType,
    dimensions: options.dimensions,
    normalized: options.normalize,
  });
}

/**
 * The vectors of `n` texts, in their order.
 * @throws {ParseError} they aren't there, aren't n, of unlike width, or not finite.
 */
export function readEmbeddings({ body, headers }: Reply, n: number): Embeddings {
  const { data, model, usage } = fields(body);
  if (!Array.isArray(data)) throw new ParseError("The reply has no list `data` of vectors.");
  if (data.length !== n) throw new ParseError(`${data.length} vectors came for ${n} texts.`);
  const rows = new Array<Float32Array>(n);
  for (const item of data) {
    const { index, embedding } = fields(item);
    if (typeof index !== "number" || !Number.isInteger(index) || index < 0 || index >= n) {
      throw new ParseError(`A vector has the index ${String(index)}, of ${n} texts.`);
    }
    if (rows[index]) throw new ParseError(`Two vectors came for the text ${index}.`);
    rows[index] = vector(embedding);
  }
  checkWidths(rows);
  const space = headers.get("x-embedding-space") ?? undefined;
  const cut = headers.get("x-truncated-inputs");
  const tokens = fields(usage)["prompt_tokens"];
  return embeddings(rows, {
    space,
    model: typeof model === "string" ? model : undefined,
    tokens: typeof tokens === "number" ? tokens : 0,
    // The service always names the space: where it can't be read, the other header can't either.
    truncated: cut === null && space === undefined ? undefined : places(cut ?? ""),
  });
}

/**
 * One vector, as base64 or as a list of numbers.
 * @throws {ParseError} it is neither, empty, or not finite.
 * @internal
 */
export function vector(value: unknown): Float32Array {
  let floats: Float32Array;
  if (typeof value === "string") floats = floatsOfBase64(value);
  else if (Array.isArray(value) && value.every((one) => typeof one === "number")) {
    floats = Float32Array.from(value as number[]);
  } else throw new ParseError("A vector is neither base64 nor a list of numbers.");
  let sum = 0;
  for (const one of floats) sum += one * 0;
  if (floats.length === 0 || sum !== 0) throw new ParseError("A vector is empty or not finite.");
  return floats;
}

/**
 * @throws {ParseError} vectors of one reply are of unlike width.
 * @internal
 */
export function checkWidths(rows: readonly Float32Array[]): void {
  const width = rows[0]?.length;
  if (rows.some((row) => row.length !== width)) {
    throw new ParseError("Vectors of one reply are of unlike width.");
  }
}

/**
 * Reads `0,4-7`.
 * @throws {ParseError} it isn't of that form.
 */
export function places(header: string): number[] {
  const found: number[] = [];
  for (const one of header ? header.split(",") : []) {
    const [, first, last = first] = /^\s*(\d+)(?:-(\d+))?\s*$/.exec(one) ?? [];
    if (first === undefined) throw new ParseError(`Places of texts came as "${header}".`);
    for (let i = Number(first); i <= Number(last); i++) found.push(i);
  }
  return found;
}

/** The error that a reply with a status of 400 or more stands for. */
export function refusal(status: number, headers: Headers, text: string): HttpError {
  let body: unknown = text;
  try {
    body = JSON.parse(text);
  } catch {
    // Then the text itself is what the service says.
  }
  const { error, reason, detail, message } = fields(body);
  const inner = fields(error);
  const words = [inner["message"], error, message, detail, body].find(isWords);
  const Kind = status === 429 ? OverloadedError : HttpError;
  const said = `${words ?? `The service answered ${status} and gave no reason`}`;
  return new Kind((isWords(reason) ? `${said}: ${reason}` : said).slice(0, MOST_WORDS), {
    status,
    serverCode: isWords(inner["code"]) ? inner["code"] : undefined,
    param: isWords(inner["param"]) ? inner["param"] : undefined,
    requestId: headers.get("x-request-id") ?? undefined,
    retryAfterMs: retryAfterMs(headers.get("retry-after")),
  });
}

/** Milliseconds, from seconds or from a date. */
function retryAfterMs(header: string | null): number | undefined {
  if (!header) return undefined;
  const ms = Number(header) * 1000;
  const wait = Number.isNaN(ms) ? Date.parse(header) - Date.now() : ms;
  return Number.isNaN(wait) ? undefined : Math.max(0, wait);
}

/**
 * What `/health` says.
 * @throws {ParseError} it isn't what this service says.
 */
export function readHealth({ body }: Reply): Health {
  const { status, model, dim } = fields(body);
  if (isWords(status) && isWords(model) && typeof dim === "number") return body as Health;
  throw new ParseError("What /health says isn't what EmbedServe says.");
}

/**
 * What `/info` says.
 * @throws {ParseError} it isn't what this service says.
 */
export function readInfo({ body }: Reply): Info {
  const { model_id, dim } = fields(body);
  if (isWords(model_id) && typeof dim === "number") return body as Info;
  throw new ParseError("What /info says isn't what EmbedServe says.");
}

/**
 * The models' names.
 * @throws {ParseError} there is no list of them.
 */
export function readModels({ body }: Reply): Model[] {
  const { data } = fields(body);
  if (Array.isArray(data) && data.every((one) => isWords(fields(one)["id"]))) return data;
  throw new ParseError("The reply has no list `data` of models.");
}

/**
 * The fields of an object; of anything else: none.
 * @internal
 */
export function fields(value: unknown): Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null ? (value as Record<string, unknown>) : {};
}

function isWords(value: unknown): value is string {
  return typeof value === "string" && value !== "";
}
