/** The options and status of a worker, and its requests. */

import type { ProcessOptions } from "./managed-process.js";

/** The defaults of `StdioWorkerOptions`. */
export const WORKER_DEFAULTS = {
  timeoutMs: 60_000,
  readyTimeoutMs: 600_000,
  restartDelayMs: 1000,
  maxRestarts: 3,
};

/** Options of a worker; all are optional. */
export interface StdioWorkerOptions extends ProcessOptions {
  /**
   * Replaces `embedserve stdio`. For a single request, `encode-query TEXT` or `encode-batch` is
   * appended.
   */
  readonly command?: readonly string[] | undefined;
  /** The timeout of each request in milliseconds. Default: 60000. */
  readonly timeoutMs?: number | undefined;
  /**
   * Milliseconds in which the worker must become ready. The first start prepares the model.
   * Default: 600000.
   */
  readonly readyTimeoutMs?: number | undefined;
  /**
   * Milliseconds before a crashed worker restarts; doubles with each failure in a row, up to 30 s.
   * Default: 1000.
   */
  readonly restartDelayMs?: number | undefined;
  /** Restarts in a row after which each request gets a process of its own. Default: 3. */
  readonly maxRestarts?: number | undefined;
}

/** The state of a worker; `one-shot`: it kept failing, and each request gets its own process. */
export type WorkerState =
  | "stopped"
  | "starting"
  | "ready"
  | "restarting"
  | "one-shot"
  | "stopping";

/** The status of a worker. */
export interface WorkerStatus {
  readonly state: WorkerState;
  readonly pid: number | undefined;
  /** The number of restarts since `start`. */
  readonly restarts: number;
  /** Requests without a reply. */
  readonly pending: number;
  /** Lines of output that weren't a reply to a pending request. */
  readonly ignoredLines: number;
  /** The reason of the last crash or failure. */
  readonly lastError: Error | undefined;
}

/** A request of the protocol, without its id. */
export type WorkerRequest =
  | { readonly command: "encode-query"; readonly params: { readonly text: string } }
  | { readonly command: "encode-batch"; readonly params: { readonly texts: readonly string[] } };
