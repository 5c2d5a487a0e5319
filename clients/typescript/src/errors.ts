/**
 * The errors that this package throws on purpose.
 *
 * The tree, with the `code` of each class:
 *
 * * EmbedError
 *   x NetworkError             NETWORK_ERROR         no connection, or the connection broke
 *   x RequestTimeoutError      TIMEOUT               a timeout expired
 *   x HTTPError                HTTP_ERROR            an error response; `status`, `retryAfterMs`
 *     + RateLimitError         RATE_LIMITED          429: overload or quota
 *     + ServerError            SERVER_ERROR          5xx: the service failed or isn't ready
 *     + SpaceConflictError     SPACE_CONFLICT        409: the service has another space than pinned
 *   x ParseError               PARSE_ERROR           a response without valid vectors
 *   x SpaceMismatchError       SPACE_MISMATCH        vectors of an incompatible embedding space
 *   x InvalidURLError          INVALID_URL           the URL of the service is malformed
 *   x ServiceNotRunningError   SERVICE_NOT_RUNNING   can't be started or keeps failing
 *   x WorkerError              WORKER_ERROR          can't be started, or returned an error
 *
 * The names and codes are those of the Python client. An aborted call rejects with the reason of
 * its signal. A wrong argument is a `TypeError`. None of them contains an API key.
 */

/** A stable identifier of each class. */
export type ErrorCode =
  | "NETWORK_ERROR"
  | "TIMEOUT"
  | "HTTP_ERROR"
  | "RATE_LIMITED"
  | "SERVER_ERROR"
  | "PARSE_ERROR"
  | "SPACE_MISMATCH"
  | "SPACE_CONFLICT"
  | "INVALID_URL"
  | "SERVICE_NOT_RUNNING"
  | "WORKER_ERROR";

/** Base class of all errors of this package. */
export abstract class EmbedError extends Error {
  /** A stable identifier for programs. */
  abstract readonly code: ErrorCode;

  constructor(message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = new.target.name;
  }
}

/** The service is unreachable, or the connection broke. */
export class NetworkError extends EmbedError {
  readonly code = "NETWORK_ERROR";
}

/** The timeout expired, retries included. `cause` is the error of the last failed attempt. */
export class RequestTimeoutError extends EmbedError {
  readonly code = "TIMEOUT";
}

/** The fields of an error response. */
export interface ErrorResponse {
  /** The HTTP status code. */
  readonly status: number;
  /** The error code in the response. */
  readonly serverCode?: string | undefined;
  /** The request field that caused the error. */
  readonly param?: string | undefined;
  /** Identifies the request in the service's log. */
  readonly requestId?: string | undefined;
  /** Milliseconds from `Retry-After` of a 429 or 503. */
  readonly retryAfterMs?: number | undefined;
}

/** The service returned an error response, whose message this is. */
export class HTTPError extends EmbedError implements ErrorResponse {
  readonly code: "HTTP_ERROR" | "RATE_LIMITED" | "SERVER_ERROR" | "SPACE_CONFLICT" = "HTTP_ERROR";
  readonly status: number;
  readonly serverCode: string | undefined;
  readonly param: string | undefined;
  readonly requestId: string | undefined;
  readonly retryAfterMs: number | undefined;

  constructor(message: string, response: ErrorResponse) {
    super(message);
    this.status = response.status;
    this.serverCode = response.serverCode;
    this.param = response.param;
    this.requestId = response.requestId;
    this.retryAfterMs = response.retryAfterMs;
  }
}

/** 429: overload, or a used-up quota. No part of the request was processed. */
export class RateLimitError extends HTTPError {
  override readonly code = "RATE_LIMITED";
}

/** 5xx: the service failed or isn't ready. */
export class ServerError extends HTTPError {
  override readonly code = "SERVER_ERROR";
}

/**
 * 409: the model's vectors can't be compared with `expectedSpace`. The service computed nothing.
 */
export class SpaceConflictError extends HTTPError {
  override readonly code = "SPACE_CONFLICT";
}

/** The response is truncated, has another shape, or holds no vectors. */
export class ParseError extends EmbedError {
  readonly code = "PARSE_ERROR";
}

/** Vectors belong to a space that can't be compared with the expected one. */
export class SpaceMismatchError extends EmbedError {
  readonly code = "SPACE_MISMATCH";
  /** The space that the client requires. */
  readonly expected: string;
  /** The space of the vectors in the response. */
  readonly received: string;

  constructor(expected: string, received: string) {
    super(
      `The vectors are in space ${received}, but earlier vectors are in space ${expected}: they ` +
        "can't be compared. Embed everything again with one model, or, if the two are never " +
        "compared, name the model in each call.",
    );
    this.expected = expected;
    this.received = received;
  }
}

/** The URL of the service is malformed. */
export class InvalidURLError extends EmbedError {
  readonly code = "INVALID_URL";
}

/** The service can't be started or keeps failing; the message ends with its last output. */
export class ServiceNotRunningError extends EmbedError {
  readonly code = "SERVICE_NOT_RUNNING";
}

/** The worker returned an error, was stopped, or can't be started. */
export class WorkerError extends EmbedError {
  readonly code = "WORKER_ERROR";
}
