/** The options, status and events of a supervisor. */

import { type ClientOptions, DEFAULT_PORT, type OptionNames } from "../options.js";
import type { ProcessExit } from "./child.js";
import { PROCESS_OPTIONS, type ProcessOptions } from "./managed-process.js";

/**
 * The defaults of `SupervisorOptions`.
 * @internal
 */
export const SUPERVISOR_DEFAULTS = {
  port: DEFAULT_PORT,
  useRay: false,
  readyTimeoutMs: 600_000,
  restartDelayMs: 1000,
  maxRestarts: 5,
  unresponsiveTimeoutMs: 30_000,
  stopTimeoutMs: 30_000,
};

/** Options of a supervisor; all are optional. */
export interface SupervisorOptions extends ProcessOptions {
  /** The port of the service on the loopback interface. Default: 8000. */
  readonly port?: number | undefined;
  /** The service's configuration file. Default: its default configuration. */
  readonly config?: string | undefined;
  /**
   * Run the service on Ray, which adds replicas and autoscaling. Otherwise it is one process, which
   * starts in seconds. Default: false.
   */
  readonly useRay?: boolean | undefined;
  /**
   * Replaces `embedserve serve --standalone`. It must listen on `port` and exit when its standard
   * input ends.
   */
  readonly command?: readonly string[] | undefined;
  /**
   * Milliseconds in which the service must become healthy. The first start prepares the model.
   * Default: 600000.
   */
  readonly readyTimeoutMs?: number | undefined;
  /**
   * Milliseconds before a crashed service restarts; doubles with each failure in a row, up to 30 s.
   * Default: 1000.
   */
  readonly restartDelayMs?: number | undefined;
  /** Restarts in a row after which the service stays down. Default: 5. */
  readonly maxRestarts?: number | undefined;
  /**
   * Milliseconds without an answer after which a ready service is stopped and restarted like one
   * that crashed. Default: 30000.
   */
  readonly unresponsiveTimeoutMs?: number | undefined;
  /**
   * Milliseconds in which the service must exit once its standard input has ended; then it receives
   * SIGINT, and SIGKILL 5 s later. Default: 30000.
   */
  readonly stopTimeoutMs?: number | undefined;
  /** Options of the supervisor's client. */
  readonly client?: Omit<ClientOptions, "baseUrl"> | undefined;
}

/** @internal */
export const SUPERVISOR_OPTIONS: OptionNames<SupervisorOptions> = {
  ...PROCESS_OPTIONS,
  port: true,
  config: true,
  useRay: true,
  readyTimeoutMs: true,
  restartDelayMs: true,
  maxRestarts: true,
  unresponsiveTimeoutMs: true,
  stopTimeoutMs: true,
  client: true,
};

/** The state of a service. */
export type ServiceState =
  | "stopped"
  | "starting"
  | "ready"
  | "restarting"
  | "stopping"
  | "failed";

/** The status of a service. */
export interface ServiceStatus {
  readonly state: ServiceState;
  /** false: the service was started otherwise, or isn't running. */
  readonly managed: boolean;
  /** The process id of the service; undefined: not managed. */
  readonly pid: number | undefined;
  /** The number of restarts since `start`. */
  readonly restarts: number;
  /** Milliseconds since the service became ready. */
  readonly uptimeMs: number | undefined;
  /** The reason of the last crash or failure. */
  readonly lastError: Error | undefined;
}

/** The events of a supervisor and the arguments of their listeners. */
export interface SupervisorEvents {
  ready: [status: ServiceStatus];
  crashed: [exit: ProcessExit];
  /** `attempt` is the number of restarts in a row. */
  restarting: [attempt: number];
  stopped: [];
  failed: [error: Error];
}
