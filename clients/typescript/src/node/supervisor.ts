/** A service that runs as a child process of this program. */

import { EventEmitter } from "node:events";
import { Client } from "../client.js";
import { Deadline } from "../deadline.js";
import { NetworkError, ServiceNotRunningError } from "../errors.js";
import { isUnavailable } from "../fallback.js";
import { createLog, type Log } from "../log.js";
import {
  CALL_OPTIONS,
  type CallOptions,
  checkIntegers,
  checkNames,
  checkNumbers,
  CLIENT_DEFAULTS,
  CLIENT_OPTIONS,
  type EmbedOptions,
  withDefaults,
} from "../options.js";
import type { Vectors } from "../vectors.js";
import type { ProcessExit } from "./child.js";
import { offBeforeExit, onBeforeExit } from "./exit-hooks.js";
import { watchHealth } from "./health-watch.js";
import { describeExit, type ManagedProcess } from "./managed-process.js";
import { RestartBackoff } from "./restart-backoff.js";
import { exitError, ServiceLauncher } from "./service-launcher.js";
import {
  type ServiceState,
  type ServiceStatus,
  SUPERVISOR_DEFAULTS,
  SUPERVISOR_OPTIONS,
  type SupervisorEvents,
  type SupervisorOptions,
} from "./supervisor-options.js";

/** Milliseconds after a broken connection in which the exit of the service is reported. */
const EXIT_NOTICE_MS = 200;
/** Milliseconds in which a service that doesn't answer must exit on its own. */
const UNRESPONSIVE_STOP_TIMEOUT_MS = 5000;
/** Milliseconds after a failed start in which a fallback is used without another start. */
const FALLBACK_PAUSE_MS = 30_000;
/** A text that crashes the service must not crash it again and again. */
const MAX_SENDS = 2;

/**
 * Starts the service, restarts it if it crashes or hangs, and stops it when this program ends. A
 * healthy service that already listens on the port is used and never stopped.
 *
 * The service can't outlive this program: it exits when its standard input ends. A ready service
 * doesn't keep the event loop alive.
 */
export class Supervisor extends EventEmitter<SupervisorEvents> {
  /** The URL of the service. */
  readonly url: string;
  /** A client of the service. Unlike `embed`, it doesn't start the service. */
  readonly client: Client;
  readonly #settings: typeof SUPERVISOR_DEFAULTS;
  readonly #log: Log;
  readonly #hasFallback: boolean;
  readonly #callTimeoutMs: number;
  readonly #launcher: ServiceLauncher;
  readonly #stopBeforeExit = () => this.stop();
  #state: ServiceState = "stopped";
  #service: ManagedProcess | undefined;
  #backoff: RestartBackoff;
  #readyAt = 0;
  #failedAt = -Infinity;
  /** The number of launches: it tells whether the service has changed since a call was sent. */
  #launches = 0;
  #lastError: Error | undefined;
  /** Aborts on `stop`. */
  #lifetime = new Deadline(Infinity);
  /** Settles when the current start or restart ends. */
  #transition: Promise<void> = Promise.resolve();
  #stopping: Promise<void> | undefined;

  /**
   * Creates a supervisor without starting the service.
   * @throws {TypeError} an option has an invalid value, or there is no such option.
   */
  constructor(options: SupervisorOptions = {}) {
    super();
    checkNames(options, SUPERVISOR_OPTIONS);
    const { baseUrl, ...clientOptions } = CLIENT_OPTIONS;
    checkNames(options.client ?? {}, clientOptions);
    this.#settings = withDefaults(SUPERVISOR_DEFAULTS, options);
    checkIntegers(this.#settings, ["port"], 1);
    checkNumbers(this.#settings, ["readyTimeoutMs", "restartDelayMs", "unresponsiveTimeoutMs"]);
    checkNumbers(this.#settings, ["stopTimeoutMs"]);
    checkIntegers(this.#settings, ["maxRestarts"], 0);
    this.#log = createLog(options.logger, "SUPERVISOR");
    this.url = `http://127.0.0.1:${this.#settings.port}`;
    const { logger } = options;
    this.client = new Client({ logger, ...options.client, baseUrl: this.url });
    this.#hasFallback = options.client?.fallback !== undefined;
    this.#callTimeoutMs = options.client?.timeoutMs ?? CLIENT_DEFAULTS.timeoutMs;
    this.#launcher = new ServiceLauncher(this.client, this.#settings, options, this.#log);
    this.#backoff = this.#createBackoff();
  }

  /**
   * Starts the service if it isn't running, and waits until it is healthy. Concurrent calls share
   * one start. `signal` and `timeoutMs` end only the waiting; by default, `readyTimeoutMs` applies.
   * @throws {ServiceNotRunningError} it can't be started, isn't ready in time, or was stopped.
   */
  async start(options: CallOptions = {}): Promise<ServiceStatus> {
    await this.#waitUntilReady(options);
    return this.status();
  }

  /**
   * Stops the service if this supervisor started it: closes its standard input, and kills it 5 s
   * after `stopTimeoutMs`.
   */
  stop(): Promise<void> {
    if (this.#state === "stopped") return Promise.resolve();
    this.#stopping ??= this.#stop().finally(() => (this.#stopping = undefined));
    return this.#stopping;
  }

  /**
   * Stops the service and starts it again.
   * @throws {ServiceNotRunningError} as `start` does.
   */
  async restart(options: CallOptions = {}): Promise<ServiceStatus> {
    await this.stop();
    return this.start(options);
  }

  /** Returns the current status, without a request. */
  status(): ServiceStatus {
    return {
      state: this.#state,
      managed: this.#service !== undefined,
      pid: this.#service?.isAlive ? this.#service.pid : undefined,
      restarts: this.#backoff.restarts,
      uptimeMs: this.#state === "ready" ? performance.now() - this.#readyAt : undefined,
      lastError: this.#lastError,
    };
  }

  /**
   * Embeds texts like `Client.embed`, and starts the service if it isn't running. A call whose
   * service crashes is sent once more, after the restart. `timeoutMs` limits the wait for a restart
   * as well, and, if it is set here, the wait for the first start. If the service can't be started
   * or keeps failing, the client's fallback is used.
   * @throws what `Client.embed` and `start` throw.
   */
  embed(text: string, options?: EmbedOptions): Promise<Float32Array>;
  embed(texts: readonly string[], options?: EmbedOptions): Promise<Vectors>;
  async embed(
    texts: string | readonly string[],
    options: EmbedOptions = {},
  ): Promise<Float32Array | Vectors> {
    try {
      return await this.#embedAtService(texts, options);
    } catch (error) {
      if (!this.#hasFallback || !isUnavailable(error)) throw error;
      return this.client.embed(texts, options);
    }
  }

  async #embedAtService(
    texts: string | readonly string[],
    options: EmbedOptions,
  ): Promise<Float32Array | Vectors> {
    const { signal } = options;
    if (this.#hasFallback && performance.now() - this.#failedAt < FALLBACK_PAUSE_MS) {
      throw this.#lastError;
    }
    const isStarted = this.#state === "ready" || this.#state === "restarting";
    const restartTimeoutMs = options.timeoutMs ?? this.#callTimeoutMs;
    const timeoutMs = isStarted ? restartTimeoutMs : options.timeoutMs;
    await this.#waitUntilReady({ signal, timeoutMs });
    for (let sends = 1; ; sends++) {
      const launches = this.#launches;
      try {
        return await this.client.embed(texts, options, false);
      } catch (error) {
        if (!(error instanceof NetworkError) || sends >= MAX_SENDS) throw error;
        if (!(await this.#hasServiceExited(launches, signal))) throw error;
        // A call that is sent later would start the service again.
        if (this.#state === "failed") throw this.#lastError;
        await this.#waitUntilReady({ signal, timeoutMs: restartTimeoutMs });
      }
    }
  }

  async #waitUntilReady(options: CallOptions): Promise<void> {
    checkNames(options, CALL_OPTIONS);
    const { signal, timeoutMs = Infinity } = options;
    checkNumbers({ timeoutMs }, ["timeoutMs"]);
    const deadline = new Deadline(timeoutMs, signal);
    try {
      await deadline.race(() => this.#ensureStarted());
    } finally {
      deadline.abort();
    }
  }

  /** Starts the service unless it is started; resolves when it is ready. */
  #ensureStarted(): Promise<void> {
    if (this.#stopping) return this.#stopping.then(() => this.#ensureStarted());
    if (this.#state === "stopped" || this.#state === "failed") {
      this.#state = "starting";
      this.#backoff = this.#createBackoff();
      this.#lifetime = new Deadline(Infinity);
      onBeforeExit(this.#stopBeforeExit);
      this.#setTransition(this.#startService());
    }
    return this.#transition;
  }

  #setTransition(transition: Promise<void>): void {
    this.#transition = transition;
    // Without a handler, Node would end the program if no call is waiting.
    transition.catch(() => {});
  }

  /** The first start isn't retried: its failure is more likely a mistake than a crash. */
  async #startService(): Promise<void> {
    try {
      await this.#launch();
    } catch (error) {
      if (!this.#stopping) this.#fail(error as Error);
      throw error;
    }
    this.#onReady();
  }

  async #restartAfterCrash(uptimeMs: number): Promise<void> {
    for (let delayMs = this.#backoff.next(uptimeMs); ; delayMs = this.#backoff.next(0)) {
      if (delayMs === undefined) {
        const error = new ServiceNotRunningError(
          `The service failed ${this.#backoff.inRow + 1} times in a row: ` +
            this.#lastError?.message,
          { cause: this.#lastError },
        );
        this.#fail(error);
        throw error;
      }
      this.#log.info(`Restart ${this.#backoff.inRow} in ${delayMs} ms.`);
      await this.#lifetime.sleep(delayMs);
      this.emit("restarting", this.#backoff.inRow);
      try {
        await this.#launch();
        return this.#onReady();
      } catch (error) {
        this.#lifetime.throwIfAborted();
        this.#lastError = error as Error;
      }
    }
  }

  async #launch(): Promise<void> {
    this.#launches++;
    this.#service = undefined;
    this.#service = await this.#launcher.launch(this.#lifetime);
  }

  #onReady(): void {
    const service = this.#service;
    this.#state = "ready";
    this.#readyAt = performance.now();
    service?.setKeepAlive(false);
    if (service) this.#watch(service);
    this.#failedAt = -Infinity;
    const name = service ? `process ${service.pid}` : "started otherwise";
    this.#log.info(`The service at ${this.url} is ready (${name}).`);
    this.emit("ready", this.status());
  }

  #watch(service: ManagedProcess): void {
    const timeoutMs = this.#settings.unresponsiveTimeoutMs;
    let hang: ServiceNotRunningError | undefined;
    let uptimeMs: number | undefined;
    const endWatch = watchHealth(this.url, timeoutMs, () => {
      if (this.#stopping) return;
      const message = `The service has not answered for ${timeoutMs} ms.`;
      hang = new ServiceNotRunningError(service.withLog(message));
      uptimeMs = performance.now() - this.#readyAt - timeoutMs;
      void service.stop(UNRESPONSIVE_STOP_TIMEOUT_MS);
    });
    void service.exited.then((exit) => {
      endWatch();
      uptimeMs ??= performance.now() - this.#readyAt;
      this.#onExit(exit, service, hang ?? exitError(exit, service), uptimeMs);
    });
  }

  #onExit(exit: ProcessExit, service: ManagedProcess, error: Error, uptimeMs: number): void {
    if (this.#stopping || this.#service !== service) return;
    this.#state = "restarting";
    this.#lastError = error;
    this.#log.warn(`The service ${describeExit(exit)}.`);
    this.#setTransition(this.#restartAfterCrash(uptimeMs));
    this.emit("crashed", exit);
  }

  /** Returns whether the service of a failed call has exited. An unmanaged one is given up then. */
  async #hasServiceExited(launches: number, signal: AbortSignal | undefined): Promise<boolean> {
    const deadline = new Deadline(Infinity, signal);
    try {
      await deadline.sleep(EXIT_NOTICE_MS);
    } finally {
      deadline.abort();
    }
    const isCurrent = () => launches === this.#launches && this.#state === "ready";
    if (!isCurrent()) return true;
    if (this.#service) return !this.#service.isAlive;
    if (await this.#launcher.isHealthy()) return false;
    if (isCurrent()) this.#state = "stopped";
    return true;
  }

  #fail(error: Error): void {
    this.#state = "failed";
    this.#failedAt = performance.now();
    this.#lastError = error;
    this.#log.error(error.message);
    this.#service = undefined;
    offBeforeExit(this.#stopBeforeExit);
    this.emit("failed", error);
  }

  async #stop(): Promise<void> {
    this.#state = "stopping";
    this.#lifetime.abort(new ServiceNotRunningError("The supervisor was stopped."));
    await this.#transition.catch(() => {});
    await this.#service?.stop(this.#settings.stopTimeoutMs);
    this.#service = undefined;
    this.#state = "stopped";
    offBeforeExit(this.#stopBeforeExit);
    this.#log.info("The service is stopped.");
    this.emit("stopped");
  }

  #createBackoff(): RestartBackoff {
    return new RestartBackoff(this.#settings.restartDelayMs, this.#settings.maxRestarts);
  }
}
