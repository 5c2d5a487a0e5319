/** What a sidecar is told, and what it tells. */

import type { ClientOptions } from "../options.js";
import type { Exit, ProcessOptions } from "./child.js";

/** How the service is started and kept up. */
export interface SidecarOptions extends ProcessOptions {
  /**
   * Starts the service; `--port` and its value are appended. It must end when its standard input
   * closes. Default: `["embedserve", "serve", "--until-eof"]`.
   */
  readonly command?: readonly string[] | undefined;
  /** The service's configuration file, put behind `serve`; default: the service's own. */
  readonly config?: string | undefined;
  /** Default: 8421. */
  readonly port?: number | undefined;
  /** Milliseconds until it must be ready; the first start prepares a model. Default: 600000. */
  readonly readyTimeout?: number | undefined;
  /** Milliseconds before a restart, doubled for each in a row, up to 30 s; default: 2000. */
  readonly restartDelay?: number | undefined;
  /** Restarts in a row, counted anew once it was up for a minute; default: 5. */
  readonly maxRestarts?: number | undefined;
  /** Of the client that calls go through. */
  readonly client?: Omit<ClientOptions, "baseUrl" | "port"> | undefined;
}

/** Where a sidecar is in its life. */
export type SidecarState =
  | "stopped"
  | "starting"
  | "ready"
  | "restarting"
  | "stopping"
  | "failed";

/** What `getStatus` says. */
export interface SidecarStatus {
  readonly state: SidecarState;
  /** Whether calls are answered now, as far as is known. */
  readonly running: boolean;
  /** false: the service was there before, and is never stopped from here. */
  readonly managed: boolean;
  readonly url: string;
  readonly port: number;
  /** Of the process that was started. */
  readonly pid: number | undefined;
  /** Restarts in a row, up to now. */
  readonly restarts: number;
  /** Milliseconds since it was ready. */
  readonly upMs: number | undefined;
  /** Why it crashed or failed last. */
  readonly lastError: Error | undefined;
}

/** The events, and what their listeners get. */
export interface SidecarEvents {
  ready: [status: SidecarStatus];
  crashed: [exit: Exit];
  /** `attempt` counts from 1. */
  restarting: [attempt: number];
  stopped: [];
  failed: [error: Error];
}
