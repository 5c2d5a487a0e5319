/** The wire format: texts → HTTP request, HTTP response → vectors. No I/O. */

import { decodeFloat32 } from "./base64.js";
import {
  type ErrorResponse,
  HTTPError,
  ParseError,
  RateLimitError,
  ServerError,
  SpaceConflictError,
} from "./errors.js";
import type { EmbedOptions, Lane } from "./options.js";
import { type Vectors, withInfo } from "./vectors.js";

const MAX_MESSAGE_LENGTH = 2000;
/** Statuses for which RFC 6585 and RFC 9110 define `Retry-After`. */
const RETRY_AFTER_STATUSES = new Set([429, 503]);
/** The service's code of the 409 for `x-embedding-space`; a 409 of anything else has another one. */
const SPACE_CONFLICT_CODE = "embedding_space_conflict";
const TRUNCATE = { end: undefined, start: "START", error: "NONE", chunk: undefined };

/**
 * An HTTP request, relative to a base URL.
 * @internal
 */
export interface Request {
  readonly path: string;
  readonly headers?: Readonly<Record<string, string>>;
  /** The body of a POST; undefined: a GET. */
  readonly body?: string;
  /** An error status whose body is parsed like that of a successful response. */
  readonly accepts?: number;
}

/**
 * The parsed JSON and the headers of a response.
 * @internal
 */
export interface Response {
  readonly body: unknown;
  readonly headers: Headers;
}

/** The response of `/health`. */
export interface Health {
  /** `ok`; `degraded`: it embeds without its shared cache; `unavailable`: it can't embed. */
  readonly status: string;
  readonly model: string;
  /** The number of dimensions of a vector. */
  readonly dim: number;
  /** `cpu`, `cuda`, …; null: not known yet. */
  readonly device: string | null;
  readonly [field: string]: unknown;
}

/** The response of `/info`. */
export interface Info {
  readonly model_id: string;
  /** The number of dimensions of a vector. */
  readonly dim: number;
  readonly device: string | null;
  readonly version: string;
  /** The space of the vectors. */
  readonly space: string;
  readonly [field: string]: unknown;
}

/** @internal */
export const MODELS_REQUEST: Request = { path: "/v1/models" };

/**
 * Builds the request for the health of the service, or of one of its models.
 * @internal
 */
export function healthRequest(model: string | undefined): Request {
  return { path: withModel("/health", model), accepts: 503 };
}

/**
 * Builds the request for the description of a model; undefined: the service's default.
 * @internal
 */
export function infoRequest(model: string | undefined): Request {
  return { path: withModel("/info", model) };
}

function withModel(path: string, model: string | undefined): string {
  return model === undefined ? path : `${path}?model=${encodeURIComponent(model)}`;
}

/**
 * Builds the request for the vectors of texts, or of images in Jina's format.
 * @param space the space that the vectors must be comparable with; undefined: any
 * @internal
 */
export function embedRequest(
  inputs: readonly unknown[],
  options: EmbedOptions,
  space: string | undefined,
): Request {
  const { truncation = "end" } = options;
  const body = {
    input: inputs,
    encoding_format: "base64",
    model: options.model,
    input_type: options.inputType,
    dimensions: options.dimensions,
    normalized: options.normalize,
    truncate: TRUNCATE[truncation],
    chunk: truncation === "chunk" || undefined,
    use_cache: falseOrUndefined(options.useCache),
  };
  return postRequest("/v1/embeddings", body, options.lane, space);
}

/**
 * Builds a request with a JSON body, from which undefined values are left out.
 * @internal
 */
export function postRequest(
  path: string,
  body: object,
  lane: Lane | undefined,
  space?: string | undefined,
): Request {
  const headers = {
    "content-type": "application/json",
    ...(lane && { "x-priority": lane }),
    ...(space && { "x-embedding-space": space }),
  };
  return { path, headers, body: JSON.stringify(body) };
}

/**
 * Returns the value of a field that the service takes for true by default.
 * @internal
 */
export function falseOrUndefined(value: boolean | undefined): false | undefined {
  return value === false ? value : undefined;
}

/**
 * Returns whether a response with this status is parsed; if not, it is an error.
 * @internal
 */
export function acceptsStatus({ accepts }: Request, status: number): boolean {
  return (status >= 200 && status < 300) || status === accepts;
}

/**
 * Parses the response to a request with n texts; returns n vectors in the order of the texts.
 * @throws {ParseError} the response doesn't hold n finite vectors of equal length.
 * @internal
 */
export function parseVectors({ body, headers }: Response, n: number): Vectors {
  const { data, model, usage } = asRecord(body);
  if (!Array.isArray(data)) throw new ParseError("The response has no list `data` of vectors.");
  if (data.length !== n) {
    throw new ParseError(`The service returned ${data.length} vectors for ${n} texts.`);
  }
  const rows = new Array<Float32Array>(n);
  for (const item of data) {
    const { index, embedding } = asRecord(item);
    if (typeof index !== "number" || !Number.isInteger(index) || index < 0 || index >= n) {
      throw new ParseError(`A vector of ${n} has the index ${String(index)}.`);
    }
    if (rows[index]) throw new ParseError(`Two vectors have the index ${index}.`);
    rows[index] = parseVector(embedding);
  }
  checkEqualLengths(rows);
  const space = headers.get("x-embedding-space") ?? undefined;
  const truncated = headers.get("x-truncated-inputs");
  const tokens = asRecord(usage)["prompt_tokens"];
  return withInfo(rows, {
    space,
    model: typeof model === "string" ? model : undefined,
    source: "service",
    tokens: typeof tokens === "number" ? tokens : 0,
    // The service always sends the space, so without it CORS hides the other header as well.
    truncated: truncated === null && space === undefined ? undefined : parsePositions(truncated),
    cached: parseNumber(/^hits=(\d+);/, headers.get("x-cache")),
    costUsd: parseNumber(/^(\d+\.\d+)$/, headers.get("x-cost-usd")),
  });
}

/** Returns the number that a pattern finds in a header; undefined: it finds none. */
function parseNumber(pattern: RegExp, header: string | null): number | undefined {
  const digits = pattern.exec(header ?? "")?.[1];
  return digits === undefined ? undefined : Number(digits);
}

/**
 * Parses one vector, in base64 or as a list of numbers.
 * @throws {ParseError} it is neither, empty, or not finite.
 * @internal
 */
export function parseVector(value: unknown): Float32Array {
  let vector: Float32Array;
  if (typeof value === "string") vector = decodeFloat32(value);
  else if (Array.isArray(value) && value.every((item) => typeof item === "number")) {
    vector = Float32Array.from(value as number[]);
  } else throw new ParseError("A vector is neither base64 nor a list of numbers.");
  // The product with 0 is NaN for NaN and infinity, and so is the sum.
  let sum = 0;
  for (const component of vector) sum += component * 0;
  if (vector.length === 0 || sum !== 0) throw new ParseError("A vector is empty or not finite.");
  return vector;
}

/**
 * @throws {ParseError} the vectors of a response differ in length.
 * @internal
 */
export function checkEqualLengths(rows: readonly Float32Array[]): void {
  const length = rows[0]?.length;
  if (rows.some((row) => row.length !== length)) {
    throw new ParseError("The vectors of the response differ in length.");
  }
}

/**
 * Parses comma-separated positions and ranges such as `0,4-7`.
 * @throws {ParseError} the header is malformed.
 * @internal
 */
export function parsePositions(header: string | null): number[] {
  const positions: number[] = [];
  for (const item of header ? header.split(",") : []) {
    const [, first, last = first] = /^\s*(\d+)(?:-(\d+))?\s*$/.exec(item) ?? [];
    if (first === undefined) {
      throw new ParseError(`The header x-truncated-inputs is malformed: "${header}".`);
    }
    for (let i = Number(first); i <= Number(last); i++) positions.push(i);
  }
  return positions;
}

/**
 * Returns the error for a response; its message is that of the body, in any common format.
 * @internal
 */
export function statusError(status: number, headers: Headers, text: string): HTTPError {
  let body: unknown = text;
  try {
    body = JSON.parse(text);
  } catch {
    // The text itself is the message.
  }
  const { error, reason, detail, message } = asRecord(body);
  const inner = asRecord(error);
  const summary =
    [inner["message"], error, message, detail, body].find(isNonEmptyString) ??
    `The service returned status ${status} without a reason`;
  const response: ErrorResponse = {
    status,
    serverCode: isNonEmptyString(inner["code"]) ? inner["code"] : undefined,
    param: isNonEmptyString(inner["param"]) ? inner["param"] : undefined,
    requestId: headers.get("x-request-id") ?? undefined,
    retryAfterMs: RETRY_AFTER_STATUSES.has(status)
      ? parseRetryAfter(headers.get("retry-after"))
      : undefined,
  };
  const Class = errorClass(response);
  const full = isNonEmptyString(reason) ? `${summary}: ${reason}` : summary;
  return new Class(full.slice(0, MAX_MESSAGE_LENGTH), response);
}

function errorClass({ status, serverCode }: ErrorResponse): typeof HTTPError {
  if (status === 409 && serverCode === SPACE_CONFLICT_CODE) return SpaceConflictError;
  if (status === 429) return RateLimitError;
  return status >= 500 ? ServerError : HTTPError;
}

/** Parses `Retry-After`, in seconds or as a date; returns milliseconds. */
function parseRetryAfter(header: string | null): number | undefined {
  if (!header) return undefined;
  const ms = Number(header) * 1000;
  const delayMs = Number.isNaN(ms) ? Date.parse(header) - Date.now() : ms;
  return Number.isNaN(delayMs) ? undefined : Math.max(0, delayMs);
}

/**
 * @throws {ParseError} the response isn't a health report.
 * @internal
 */
export function parseHealth({ body }: Response): Health {
  const { status, model, dim } = asRecord(body);
  if (isNonEmptyString(status) && isNonEmptyString(model) && typeof dim === "number") {
    return body as Health;
  }
  throw new ParseError("The response of /health isn't that of EmbedServe. Is the URL right?");
}

/**
 * @throws {ParseError} the response doesn't describe a service.
 * @internal
 */
export function parseInfo({ body }: Response): Info {
  const { model_id, dim } = asRecord(body);
  if (isNonEmptyString(model_id) && typeof dim === "number") return body as Info;
  throw new ParseError("The response of /info isn't that of EmbedServe. Is the URL right?");
}

/**
 * @throws {ParseError} the response has no list of models.
 * @internal
 */
export function parseModelNames({ body }: Response): string[] {
  const { data } = asRecord(body);
  const names = Array.isArray(data) ? data.map((item) => asRecord(item)["id"]) : [undefined];
  if (names.every(isNonEmptyString)) return names;
  throw new ParseError("The response has no list `data` of models.");
}

/**
 * Returns an object as a record of unknown fields; an empty one for any other value.
 * @internal
 */
export function asRecord(value: unknown): Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null ? (value as Record<string, unknown>) : {};
}

function isNonEmptyString(value: unknown): value is string {
  return typeof value === "string" && value !== "";
}
