/** What a worker is told, what it tells, and what it is asked. */

import type { ProcessOptions } from "./child.js";

/** How the worker is started and kept up. */
export interface WorkerOptions extends ProcessOptions {
  /**
   * Starts it; for one request, `encode-query TEXT` or `encode-batch` is appended. Default:
   * `["embedserve", "stdio"]`.
   */
  readonly command?: readonly string[] | undefined;
  /** Milliseconds that a request may take; default: 30000. */
  readonly requestTimeout?: number | undefined;
  /** Milliseconds until it must be ready; the first start prepares a model. Default: 600000. */
  readonly readyTimeout?: number | undefined;
  /** Milliseconds before a restart, doubled for each in a row, up to 30 s; default: 1000. */
  readonly restartDelay?: number | undefined;
  /** Restarts in a row, counted anew once it was up for a minute; default: 3. */
  readonly maxRestarts?: number | undefined;
}

/** Where a worker is in its life; `one-shot`: it doesn't stay up, each request has a process. */
export type WorkerState =
  | "stopped"
  | "starting"
  | "ready"
  | "restarting"
  | "one-shot"
  | "stopping";

/** What `getStatus` says. */
export interface WorkerStatus {
  readonly state: WorkerState;
  readonly pid: number | undefined;
  /** Restarts in a row, up to now. */
  readonly restarts: number;
  /** Requests without an answer yet. */
  readonly pending: number;
  /** Lines that were no answer to anything. */
  readonly ignored: number;
  /** Why it ended last. */
  readonly lastError: Error | undefined;
}

/** What the worker is asked, without its id. */
export type Request =
  | { readonly command: "encode-query"; readonly params: { readonly text: string } }
  | { readonly command: "encode-batch"; readonly params: { readonly texts: readonly string[] } };
