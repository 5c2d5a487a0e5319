/**
 * Every error that this package raises on purpose.
 *
 * The tree:
 *
 * * EmbedError
 *   x NetworkError         NETWORK_ERROR    nobody answered, or the connection broke
 *   x TimeoutError         TIMEOUT          the call's time ran out, retries included
 *   x HttpError            HTTP_ERROR       the service refused, in its own words
 *     + OverloadedError    OVERLOADED       429: too much to do, with `retryAfterMs`
 *   x ParseError           PARSE_ERROR      the answer isn't what was asked for
 *   x SpaceMismatchError   SPACE_MISMATCH   vectors that can't be compared would have met
 *   x SidecarError         SIDECAR_ERROR    the service could not be started, or doesn't stay up
 *   x WorkerError          WORKER_ERROR     the worker refused, or can't be had
 *
 * An aborted call is none of these: it rejects with its signal's own reason. A wrong argument is a
 * `TypeError`. `code` tells them apart where `instanceof` can't: between the ES module and the
 * CommonJS copy of this package. None shows an API key.
 */

/** The stable words for programs. */
export type ErrorCode =
  | "NETWORK_ERROR"
  | "TIMEOUT"
  | "HTTP_ERROR"
  | "OVERLOADED"
  | "PARSE_ERROR"
  | "SPACE_MISMATCH"
  | "SIDECAR_ERROR"
  | "WORKER_ERROR";

/** Base of them all. `cause` is what it came from, where there is something. */
export abstract class EmbedError extends Error {
  /** A stable word for programs. */
  abstract readonly code: ErrorCode;

  constructor(message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = new.target.name;
  }
}

/** Nobody answered, or the connection broke. */
export class NetworkError extends EmbedError {
  readonly code = "NETWORK_ERROR";
}

/** The call's time ran out, retries included. `cause` is the last try's error, if one failed. */
export class TimeoutError extends EmbedError {
  readonly code = "TIMEOUT";
}

/** What a refusal tells beside its message. */
export interface Refusal {
  /** HTTP's. */
  readonly status: number;
  /** The service's stable word for the error. */
  readonly serverCode?: string | undefined;
  /** The field that it is about. */
  readonly param?: string | undefined;
  /** By which the service's log knows the request. */
  readonly requestId?: string | undefined;
  /** Milliseconds after which the service asks to be tried again. */
  readonly retryAfterMs?: number | undefined;
}

/** The service answered with an error; the message is its own. */
export class HttpError extends EmbedError implements Refusal {
  readonly code: "HTTP_ERROR" | "OVERLOADED" = "HTTP_ERROR";
  readonly status: number;
  readonly serverCode: string | undefined;
  readonly param: string | undefined;
  readonly requestId: string | undefined;
  readonly retryAfterMs: number | undefined;

  constructor(message: string, refusal: Refusal) {
    super(message);
    this.status = refusal.status;
    this.serverCode = refusal.serverCode;
    this.param = refusal.param;
    this.requestId = refusal.requestId;
    this.retryAfterMs = refusal.retryAfterMs;
  }
}

/** 429: nothing of the request was taken on. */
export class OverloadedError extends HttpError {
  override readonly code = "OVERLOADED";
}

/** The answer isn't what was asked for: cut short, of another shape, or too few vectors. */
export class ParseError extends EmbedError {
  readonly code = "PARSE_ERROR";
}

/** Vectors of two spaces that can't be compared would have met. */
export class SpaceMismatchError extends EmbedError {
  readonly code = "SPACE_MISMATCH";
  /** The space that the client holds to. */
  readonly expected: string;
  /** The space of the vectors that came. */
  readonly received: string;

  constructor(expected: string, received: string) {
    super(
      `These vectors are of the space ${received}, those before of ${expected}: they can't be ` +
        "compared. Embed everything anew with one model, or make a client for each.",
    );
    this.expected = expected;
    this.received = received;
  }
}

/** The service could not be started, or doesn't stay up; the message has its last words. */
export class SidecarError extends EmbedError {
  readonly code = "SIDECAR_ERROR";
}

/** The worker answered with an error, was stopped, or can't be had. */
export class WorkerError extends EmbedError {
  readonly code = "WORKER_ERROR";
}
