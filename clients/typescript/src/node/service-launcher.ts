/** Starts a service and waits until it is healthy. */

import type { Client } from "../client.js";
import type { Deadline } from "../deadline.js";
import {
  type EmbedError,
  HTTPError,
  ParseError,
  RequestTimeoutError,
  ServerError,
  ServiceNotRunningError,
} from "../errors.js";
import type { Log } from "../log.js";
import type { ProcessExit } from "./child.js";
import { describeExit, ManagedProcess } from "./managed-process.js";
import type { SUPERVISOR_DEFAULTS, SupervisorOptions } from "./supervisor-options.js";

const HEALTH_TIMEOUT_MS = 2000;
const POLL_MS = 250;

/** `healthy`, `absent` (no service, or one that starts), or the error of another program. */
type Probe = "healthy" | "absent" | EmbedError;

/** Starts processes of one service. */
export class ServiceLauncher {
  readonly #options: SupervisorOptions;
  readonly #command: readonly string[];
  readonly #settings: typeof SUPERVISOR_DEFAULTS;
  readonly #client: Client;
  readonly #log: Log;

  /** @param client a client of the service at `settings.port` */
  constructor(
    client: Client,
    settings: typeof SUPERVISOR_DEFAULTS,
    options: SupervisorOptions,
    log: Log,
  ) {
    this.#client = client;
    this.#settings = settings;
    this.#options = options;
    this.#log = log;
    this.#command = options.command ?? serveCommand(settings.port, options);
  }

  /**
   * Returns the process of a healthy service, or undefined if the port has a healthy service
   * already. No process is left when it rejects.
   * @param lifetime cancels the launch
   * @throws {ServiceNotRunningError} the process exited, wasn't ready in time, or another program
   *   uses the port.
   */
  async launch(lifetime: Deadline): Promise<ManagedProcess | undefined> {
    const { port, readyTimeoutMs, stopTimeoutMs } = this.#settings;
    const before = await lifetime.race(() => this.#probe());
    if (before === "healthy") return undefined;
    if (before !== "absent") {
      throw new ServiceNotRunningError(
        `Port ${port} is in use by another program, or by a service that isn't ready. ` +
          "Choose another `port`, or stop the program.",
        { cause: before },
      );
    }
    let isStarting = true;
    const service = new ManagedProcess(this.#command, this.#options, {
      onLog: (line) => {
        if (isStarting) this.#options.onProgress?.(line);
        this.#log.info(line);
      },
      exitSignal: "SIGINT",
    });
    const deadline = lifetime.child(readyTimeoutMs);
    try {
      await deadline.race(() => Promise.race([this.#pollHealth(deadline), failOnExit(service)]));
      return service;
    } catch (error) {
      await service.stop(stopTimeoutMs);
      lifetime.throwIfAborted();
      if (error instanceof RequestTimeoutError) {
        const message = `The service was not ready after ${readyTimeoutMs} ms.`;
        throw new ServiceNotRunningError(service.withLog(message), { cause: error });
      }
      // If two programs start a service at the same time, only the first gets the port.
      if (await lifetime.race(() => this.isHealthy())) return undefined;
      throw error;
    } finally {
      isStarting = false;
      deadline.abort();
    }
  }

  /** Returns whether the port has a healthy service. */
  async isHealthy(): Promise<boolean> {
    return (await this.#probe()) === "healthy";
  }

  async #probe(): Promise<Probe> {
    try {
      const { status } = await this.#client.health({ timeoutMs: HEALTH_TIMEOUT_MS });
      return status === "unavailable" ? "absent" : "healthy";
    } catch (error) {
      const isOtherProgram =
        error instanceof ParseError ||
        (error instanceof HTTPError && !(error instanceof ServerError));
      return isOtherProgram ? error : "absent";
    }
  }

  /** Resolves when the service is healthy. Until then its HTTP proxy may return any response. */
  async #pollHealth(deadline: Deadline): Promise<void> {
    while (!(await this.isHealthy())) await deadline.sleep(POLL_MS);
  }
}

function serveCommand(port: number, { config, useRay }: SupervisorOptions): string[] {
  const configArguments = config === undefined ? [] : [config];
  const modeArguments = useRay ? [] : ["--standalone"];
  const options = ["--port", String(port), "--until-eof"];
  return ["embedserve", "serve", ...configArguments, ...modeArguments, ...options];
}

async function failOnExit(service: ManagedProcess): Promise<never> {
  throw exitError(await service.exited, service);
}

/** Returns the error for the exit of a service, with its last output. */
export function exitError(exit: ProcessExit, service: ManagedProcess): ServiceNotRunningError {
  const message = service.withLog(`The service ${describeExit(exit)}.`);
  return new ServiceNotRunningError(message, exit.error && { cause: exit.error });
}
