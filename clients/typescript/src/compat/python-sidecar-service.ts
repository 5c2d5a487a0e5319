/** A sidecar: the service as a child process of an Electron or Node program. */

import { createLog, type Logger } from "../log.js";
import { Supervisor } from "../node/supervisor.js";
import type { ServiceStatus, SupervisorOptions } from "../node/supervisor-options.js";
import { checkNames, type OptionNames } from "../options.js";
import { SIDECAR_PORT } from "./python-sidecar-client.js";
import { addSupervisor } from "./restarts.js";

const RESTART_DELAY_MS = 2000;
/** A script that doesn't watch its standard input needs SIGINT to end. */
const SCRIPT_STOP_TIMEOUT_MS = 1000;

/** Options of a sidecar; all are optional. */
export interface PythonSidecarServiceOptions {
  /** The Python interpreter. Default: the command `embedserve`, or `python3` with `scriptPath`. */
  readonly pythonPath?: string | undefined;
  /** Runs as `python SCRIPT --port PORT`. Default: `embedserve serve --standalone`. */
  readonly scriptPath?: string | undefined;
  /** The port on the loopback interface. Default: 8421. */
  readonly port?: number | undefined;
  /** Restarts the sidecar 2 s after a crash. Default: true. */
  readonly autoRestart?: boolean | undefined;
  /** Receives the sidecar's output, starts, crashes and restarts. Category: `SIDECAR-SERVICE`. */
  readonly logger?: Logger | undefined;
  /** The configuration file of the service, if there is no `scriptPath`. */
  readonly config?: string | undefined;
  /** The environment of the sidecar. Default: that of this program. */
  readonly env?: NodeJS.ProcessEnv | undefined;
}

const OPTIONS: OptionNames<PythonSidecarServiceOptions> = {
  pythonPath: true,
  scriptPath: true,
  port: true,
  autoRestart: true,
  logger: true,
  config: true,
  env: true,
};

/** The status of a sidecar. */
export interface SidecarStatus extends ServiceStatus {
  /** Whether it answers and can embed. */
  readonly running: boolean;
  readonly port: number;
  readonly url: string;
}

/** Starts, restarts and stops a sidecar, which never outlives this program. */
export class PythonSidecarService {
  readonly #port: number;
  readonly #supervisor: Supervisor;

  /** @throws {TypeError} an option has an invalid value, or there is no such option. */
  constructor(options: PythonSidecarServiceOptions = {}) {
    checkNames(options, OPTIONS);
    const { port = SIDECAR_PORT, autoRestart = true, scriptPath, env } = options;
    this.#port = port;
    this.#supervisor = new Supervisor({
      ...commandOptions(port, options),
      // A script may be busy with one request for as long as it takes.
      ...(scriptPath !== undefined && {
        unresponsiveTimeoutMs: Infinity,
        stopTimeoutMs: SCRIPT_STOP_TIMEOUT_MS,
      }),
      port,
      env,
      restartDelayMs: RESTART_DELAY_MS,
      maxRestarts: autoRestart ? undefined : 0,
      logger: createLog(options.logger, "SIDECAR-SERVICE"),
    });
  }

  /**
   * Starts the sidecar, and waits until it can embed. A sidecar that runs on the port is used.
   * @throws {ServiceNotRunningError} it can't be started, or another program uses the port.
   */
  async startSidecar(): Promise<SidecarStatus> {
    addSupervisor(this.#supervisor);
    await this.#supervisor.start();
    return this.getStatus();
  }

  /** Stops the sidecar if this program started it. */
  stopSidecar(): Promise<void> {
    return this.#supervisor.stop();
  }

  /** Stops the sidecar and starts it again; see `startSidecar`. */
  async restartSidecar(): Promise<SidecarStatus> {
    await this.stopSidecar();
    return this.startSidecar();
  }

  /** Checks the health of the sidecar; never rejects. */
  async getStatus(): Promise<SidecarStatus> {
    const { url, client } = this.#supervisor;
    const running = await client.isHealthy();
    return { ...this.#supervisor.status(), running, port: this.#port, url };
  }
}

function commandOptions(
  port: number,
  { pythonPath, scriptPath, config }: PythonSidecarServiceOptions,
): SupervisorOptions {
  const portArguments = ["--port", String(port)];
  if (scriptPath !== undefined) {
    return { command: [pythonPath ?? "python3", scriptPath, ...portArguments] };
  }
  if (pythonPath === undefined) return { config };
  const configArguments = config === undefined ? [] : [config];
  const program = [pythonPath, "-m", "embedserve_client.command.main", "serve"];
  const mode = ["--standalone", "--until-eof"];
  return { command: [...program, ...configArguments, ...portArguments, ...mode] };
}
