/** The service as a child of this program. */

import { EventEmitter } from "node:events";
import { EmbedClient } from "../client.js";
import { Deadline } from "../deadline.js";
import type { Embeddings } from "../embeddings.js";
import { NetworkError, SidecarError } from "../errors.js";
import { atLeast, type CallOptions, type EmbedOptions, whole } from "../options.js";
import type { Child, Exit } from "./child.js";
import { stopAtEnd, stopped } from "./exit.js";
import { crash, Launcher, SERVICE_STOP_MS } from "./launcher.js";
import { Restarts } from "./restarts.js";
import type {
  SidecarEvents,
  SidecarOptions,
  SidecarState,
  SidecarStatus,
} from "./sidecar-options.js";

/** Milliseconds in which a crash that broke a connection becomes known. */
const NOTICE_MS = 200;

/**
 * Starts the service, keeps it up, and stops it when this program ends. A healthy service that
 * already answers on the port is used as it is, and never stopped.
 *
 * The service can't outlive this program: it ends when its standard input closes. A ready service
 * doesn't keep this program from ending.
 */
export class EmbedSidecar extends EventEmitter<SidecarEvents> {
  /** Asks the service, once it is there; for what this class has no method for. */
  readonly client: EmbedClient;
  readonly #options: SidecarOptions;
  readonly #port: number;
  readonly #launcher: Launcher;
  #state: SidecarState = "stopped";
  #child: Child | undefined;
  #restarts: Restarts;
  #readyAt = 0;
  #launches = 0;
  #lastError: Error | undefined;
  /** Ends when it is told to stop. */
  #life = new Deadline(Infinity);
  /** The start or the restarts under way. */
  #run: Promise<void> = Promise.resolve();
  #stopping: Promise<void> | undefined;

  /** @throws {TypeError} an option can't be used. */
  constructor(options: SidecarOptions = {}) {
    super();
    this.#options = options;
    this.#port = options.port ?? 8421;
    this.client = new EmbedClient({ ...options.client, port: this.#port });
    this.#launcher = new Launcher(options, this.#port);
    this.#restarts = this.#newRestarts();
  }

  /**
   * Starts the service, unless it runs, and waits until it is ready. Calls at the same time share
   * one start. With a `signal`, only the waiting ends; `timeout` alike (default: none but
   * `readyTimeout`).
   * @throws {SidecarError} it ended before it was ready, with its last words; it wasn't ready in
   *   time; something else has the port; it was stopped meanwhile.
   */
  async startSidecar(options: CallOptions = {}): Promise<SidecarStatus> {
    await this.#waited(options);
    return this.getStatus();
  }

  /** Stops the service, if it was started from here: asks it to end, and kills it after 35 s. */
  stopSidecar(): Promise<void> {
    if (this.#state === "stopped") return Promise.resolve();
    this.#stopping ??= this.#stop().finally(() => (this.#stopping = undefined));
    return this.#stopping;
  }

  /** Stops it and starts it again; errors as `startSidecar`. */
  async restartSidecar(options: CallOptions = {}): Promise<SidecarStatus> {
    await this.stopSidecar();
    return this.startSidecar(options);
  }

  /** How it is, without asking it. */
  getStatus(): SidecarStatus {
    const running = this.#state === "ready";
    return {
      state: this.#state,
      running,
      managed: this.#child !== undefined,
      url: this.client.url,
      port: this.#port,
      pid: this.#child?.alive ? this.#child.pid : undefined,
      restarts: this.#restarts.inRow,
      upMs: running ? performance.now() - this.#readyAt : undefined,
      lastError: this.#lastError,
    };
  }

  /**
   * Vectors of texts, in their order; starts the service if it doesn't run. Waiting for a restart
   * is part of the call's `timeout`; waiting for the first start only if one is given here.
   * @throws what `EmbedClient.embed` and `startSidecar` throw.
   */
  async embed(texts: readonly string[], options: EmbedOptions = {}): Promise<Embeddings> {
    const { signal } = options;
    const isUp = this.#state === "ready" || this.#state === "restarting";
    if (!isUp && options.timeout === undefined) await this.#waited({ signal });
    const timeout = options.timeout ?? this.#options.client?.timeout ?? 30_000;
    const deadline = new Deadline(timeout, signal);
    try {
      for (;;) {
        await deadline.race(() => this.#begin());
        const launches = this.#launches;
        try {
          return await deadline.race((inner) =>
            this.client.embed(texts, { ...options, signal: inner, timeout: deadline.leftMs }),
          );
        } catch (error) {
          deadline.check();
          if (!(error instanceof NetworkError)) throw error;
          deadline.lastError = error;
          await deadline.sleep(NOTICE_MS);
          // Embedding twice does no harm, so that a call survives a crash under it.
          if (!(await this.#isGone(launches))) throw error;
        }
      }
    } finally {
      deadline.end();
    }
  }

  /** The vector of one text; as `embed`. */
  async embedSingle(text: string, options: EmbedOptions = {}): Promise<Float32Array> {
    const [found] = await this.embed([text], options);
    return found as Float32Array;
  }

  async #waited({ signal, timeout = Infinity }: CallOptions): Promise<void> {
    const deadline = new Deadline(timeout, signal);
    try {
      await deadline.race(() => this.#begin());
    } finally {
      deadline.end();
    }
  }

  /** Resolves when it is ready, which it sees to. */
  #begin(): Promise<void> {
    if (this.#stopping) return this.#stopping.then(() => this.#begin());
    if (this.#state === "stopped" || this.#state === "failed") {
      this.#state = "starting";
      this.#restarts = this.#newRestarts();
      this.#life = new Deadline(Infinity);
      stopAtEnd(this, () => this.stopSidecar());
      this.#go(this.#start());
    }
    return this.#run;
  }

  #go(run: Promise<void>): void {
    this.#run = run;
    // Nobody may be waiting for it.
    run.catch(() => {});
  }

  /** The first start; one that fails is more likely a mistake than a crash, and isn't repeated. */
  async #start(): Promise<void> {
    try {
      await this.#launch();
    } catch (error) {
      if (!this.#stopping) this.#fail(error as Error);
      throw error;
    }
    this.#becomeReady();
  }

  async #restart(upMs: number): Promise<void> {
    for (;; upMs = 0) {
      const wait = this.#restarts.next(upMs);
      if (wait === undefined) {
        const error = new SidecarError(
          `The service crashed ${this.#restarts.inRow + 1} times in a row: ` +
            this.#lastError?.message,
          { cause: this.#lastError },
        );
        this.#fail(error);
        throw error;
      }
      await this.#life.sleep(wait);
      this.emit("restarting", this.#restarts.inRow);
      try {
        await this.#launch();
        return this.#becomeReady();
      } catch (error) {
        this.#life.check();
        this.#lastError = error as Error;
      }
    }
  }

  async #launch(): Promise<void> {
    this.#launches++;
    this.#child = undefined;
    this.#child = await this.#launcher.launch(this.#life);
  }

  #becomeReady(): void {
    const child = this.#child;
    this.#state = "ready";
    this.#readyAt = performance.now();
    child?.hold(false);
    void child?.exited.then((exit) => this.#crashed(exit, child));
    this.emit("ready", this.getStatus());
  }

  #crashed(exit: Exit, child: Child): void {
    if (this.#stopping || this.#child !== child) return;
    this.#state = "restarting";
    this.#lastError = crash(exit, child);
    this.#go(this.#restart(performance.now() - this.#readyAt));
    this.emit("crashed", exit);
  }

  /** Whether the service that a call was sent to has gone; one that isn't ours is given up. */
  async #isGone(launches: number): Promise<boolean> {
    if (launches !== this.#launches || this.#state !== "ready") return true;
    if (this.#child) return !this.#child.alive;
    if (await this.#launcher.answers()) return false;
    if (launches === this.#launches && this.#state === "ready") this.#state = "stopped";
    return true;
  }

  #fail(error: Error): void {
    this.#state = "failed";
    this.#lastError = error;
    this.#child = undefined;
    stopped(this);
    this.emit("failed", error);
  }

  async #stop(): Promise<void> {
    this.#state = "stopping";
    this.#life.end(new SidecarError("The sidecar was stopped."));
    await this.#run.catch(() => {});
    await this.#child?.stop(SERVICE_STOP_MS);
    this.#child = undefined;
    this.#state = "stopped";
    stopped(this);
    this.emit("stopped");
  }

  #newRestarts(): Restarts {
    const { restartDelay = 2000, maxRestarts = 5 } = this.#options;
    return new Restarts(
      atLeast("restartDelay", restartDelay, 0),
      whole("maxRestarts", maxRestarts, 0),
    );
  }
}
