/** The options and status of a worker, and its requests. */

import type { OptionNames } from "../options.js";
import { PROCESS_OPTIONS, type ProcessOptions } from "./managed-process.js";

/**
 * The defaults of `StdioWorkerOptions`.
 * @internal
 */
export const WORKER_DEFAULTS = {
  timeoutMs: 60_000,
  readyTimeoutMs: 600_000,
  restartDelayMs: 1000,
  maxRestarts: 3,
  stopTimeoutMs: 5000,
};

/** Options of a worker; all are optional. */
export interface StdioWorkerOptions extends ProcessOptions {
  /**
   * Replaces `embedserve stdio`. The mode is appended: `server`, or for a single request
   * `encode-query TEXT` or `encode-batch`. A command that ends with `server` is the same.
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
  /**
   * Milliseconds in which the worker must exit once its standard input has ended; then it receives
   * SIGINT, and SIGKILL 5 s later. Default: 5000.
   */
  readonly stopTimeoutMs?: number | undefined;
}

/** @internal */
export const WORKER_OPTIONS: OptionNames<StdioWorkerOptions> = {
  ...PROCESS_OPTIONS,
  timeoutMs: true,
  readyTimeoutMs: true,
  restartDelayMs: true,
  maxRestarts: true,
  stopTimeoutMs: true,
};

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

/**
 * A request of the protocol, without its id.
 * @internal
 */
export type WorkerRequest =
  | { readonly command: "encode-query"; readonly params: { readonly text: string } }
  | { readonly command: "encode-batch"; readonly params: { readonly texts: readonly string[] } }
  | {
      readonly command: "embed";
      readonly params: {
        readonly texts: readonly string[];
        readonly input_type: string | undefined;
        readonly dimensions: number | undefined;
      };
    };
