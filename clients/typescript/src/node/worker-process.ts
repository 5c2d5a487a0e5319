/** One process of a worker: request lines → process → reply lines. */

import type { Deadline } from "../deadline.js";
import { RequestTimeoutError, WorkerError } from "../errors.js";
import type { Log } from "../log.js";
import { asRecord } from "../wire.js";
import type { ProcessExit } from "./child.js";
import { describeExit, ManagedProcess, type ProcessOptions } from "./managed-process.js";
import type { WORKER_DEFAULTS } from "./stdio-worker-options.js";

/** A reply without its id. */
export type Reply = { readonly result: unknown } | { readonly error: string };

/** The callbacks of a worker process. */
export interface ReplyHandlers {
  /** Handles a reply; returns false if no request with this id is pending. */
  onReply(id: string, reply: Reply): boolean;
  /** Called for each line that isn't a reply to a pending request. */
  onIgnored(): void;
  /** Called when the process accepts requests again. */
  onDrain(): void;
}

/** A ready worker process. */
export class WorkerProcess {
  readonly #process: ManagedProcess;
  readonly #handlers: ReplyHandlers;
  readonly #stopTimeoutMs: number;
  #hasDrained = true;
  #resolveReady: () => void = () => {};
  readonly #ready = new Promise<void>((resolve) => (this.#resolveReady = resolve));

  private constructor(
    command: readonly string[],
    options: ProcessOptions,
    { stopTimeoutMs }: typeof WORKER_DEFAULTS,
    handlers: ReplyHandlers,
    log: Log,
  ) {
    this.#stopTimeoutMs = stopTimeoutMs;
    this.#handlers = handlers;
    this.#process = new ManagedProcess(command, options, {
      onLine: (line) => this.#handleLine(line),
      onDropped: () => handlers.onIgnored(),
      onLog: (line) => {
        options.onProgress?.(line);
        log.info(line);
      },
      exitSignal: "SIGKILL",
    });
    this.#process.onDrain(() => {
      this.#hasDrained = true;
      handlers.onDrain();
    });
  }

  /**
   * Starts a process and waits until it is ready. No process is left when it rejects.
   * @param lifetime cancels the start
   * @throws {WorkerError} it exited or wasn't ready in time; the message ends with its output.
   */
  static async start(
    command: readonly string[],
    options: ProcessOptions,
    settings: typeof WORKER_DEFAULTS,
    handlers: ReplyHandlers,
    log: Log,
    lifetime: Deadline,
  ): Promise<WorkerProcess> {
    lifetime.throwIfAborted();
    const { readyTimeoutMs } = settings;
    const worker = new WorkerProcess(command, options, settings, handlers, log);
    const deadline = lifetime.child(readyTimeoutMs);
    const failOnExit = async () => {
      throw worker.exitError(await worker.exited);
    };
    try {
      await deadline.race(() => Promise.race([worker.#ready, failOnExit()]));
      return worker;
    } catch (error) {
      await worker.stop();
      if (!(error instanceof RequestTimeoutError)) throw error;
      const message = `The worker was not ready after ${readyTimeoutMs} ms.`;
      throw new WorkerError(worker.#process.withLog(message), { cause: error });
    } finally {
      deadline.abort();
    }
  }

  /** Resolves when the process has ended. */
  get exited(): Promise<ProcessExit> {
    return this.#process.exited;
  }

  get pid(): number | undefined {
    return this.#process.pid;
  }

  /** Whether the process accepts requests; if it doesn't, `onDrain` reports when it does. */
  get isWritable(): boolean {
    return this.#hasDrained && this.#process.isAlive;
  }

  /** Writes a request line. */
  send(line: string): void {
    this.#hasDrained = this.#process.write(line);
  }

  /** Sets whether the process keeps the event loop of this program alive. */
  setKeepAlive(keepAlive: boolean): void {
    this.#process.setKeepAlive(keepAlive);
  }

  /** Closes standard input; sends SIGINT after the stop timeout, and SIGKILL 5 s later. */
  async stop(): Promise<void> {
    await this.#process.stop(this.#stopTimeoutMs);
  }

  /** Returns the error for the exit of this process, with its last output. */
  exitError(exit: ProcessExit): WorkerError {
    const message = this.#process.withLog(`The worker ${describeExit(exit)}.`);
    return new WorkerError(message, exit.error && { cause: exit.error });
  }

  #handleLine(line: string): void {
    let message: unknown;
    try {
      message = JSON.parse(line);
    } catch {
      // Libraries may print to standard output as well.
    }
    const { id, status, result, error } = asRecord(message);
    if (status === "ready") return this.#resolveReady();
    const reply =
      typeof error === "string" ? { error } : result === undefined ? undefined : { result };
    const isHandled =
      typeof id === "string" && reply !== undefined && this.#handlers.onReply(id, reply);
    if (!isHandled) this.#handlers.onIgnored();
  }
}
