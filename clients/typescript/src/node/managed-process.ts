/** A child process that doesn't outlive this program. */

import { setTimeout as sleep } from "node:timers/promises";
import type { Logger } from "../log.js";
import type { OptionNames } from "../options.js";
import { type Child, type ProcessExit, spawnChild } from "./child.js";
import { onExit } from "./exit-hooks.js";
import { LineSplitter } from "./line-splitter.js";

/** The number of output lines that an error message contains. */
const TAIL_LINES = 12;
/** Milliseconds to read output after the exit; another process may hold the pipe open. */
const DRAIN_MS = 500;
/** Milliseconds between SIGINT and SIGKILL. */
const KILL_DELAY_MS = 5000;

/** Options of a child process. */
export interface ProcessOptions {
  /** The program and its arguments, without a shell. */
  readonly command?: readonly string[] | undefined;
  /** The environment. Default: that of this program. */
  readonly env?: NodeJS.ProcessEnv | undefined;
  /** The working directory. Default: that of this program. */
  readonly cwd?: string | undefined;
  /** Called with each line of log output; by a supervisor only while the service starts. */
  readonly onProgress?: ((line: string) => void) | undefined;
  /**
   * Receives each line of log output, and starts, crashes and restarts. Default: none, or as
   * `LOG_CATEGORIES` says.
   */
  readonly logger?: Logger | undefined;
}

/** @internal */
export const PROCESS_OPTIONS: OptionNames<ProcessOptions> = {
  command: true,
  env: true,
  cwd: true,
  onProgress: true,
  logger: true,
};

/**
 * Callbacks and settings of a managed process.
 * @internal
 */
export interface ProcessHandlers {
  /** Called with each line of standard output. Default: standard output is a log as well. */
  readonly onLine?: (line: string) => void;
  /** Called for each line of standard output that is too long. */
  readonly onDropped?: () => void;
  /** Called with each line of the log: standard error, and standard output without `onLine`. */
  readonly onLog?: ((line: string) => void) | undefined;
  /** The signal that the process receives when this program calls `process.exit`. */
  readonly exitSignal: NodeJS.Signals;
}

/**
 * Its standard input is a pipe that stays open while this program runs.
 * @internal
 */
export class ManagedProcess {
  /** Resolves when the process has ended and its output is read. */
  readonly exited: Promise<ProcessExit>;
  readonly #process: Child;
  readonly #removeExitHook: () => void;
  readonly #tail: string[] = [];
  #isAlive = true;

  constructor(command: readonly string[], options: ProcessOptions, handlers: ProcessHandlers) {
    const { cwd, env } = options;
    this.#process = spawnChild(command, { cwd, env });
    const { stdin, stdout, stderr } = this.#process;
    // A write to an ended process fails; `exited` reports the end.
    stdin.on("error", () => {});
    const log = (line: string) => {
      if (this.#tail.push(line) > TAIL_LINES) this.#tail.shift();
      handlers.onLog?.(line);
    };
    const out = new LineSplitter(handlers.onLine ?? log, handlers.onDropped);
    const err = new LineSplitter(log);
    stdout.on("data", (chunk: Buffer) => out.push(chunk)).on("end", () => out.end());
    stderr.on("data", (chunk: Buffer) => err.push(chunk)).on("end", () => err.end());
    this.#removeExitHook = onExit(() => this.#process.kill(handlers.exitSignal));
    this.exited = this.#waitForExit();
  }

  get pid(): number | undefined {
    return this.#process.pid;
  }

  get isAlive(): boolean {
    return this.#isAlive;
  }

  /** Appends the last lines of the log to an error message. */
  withLog(message: string): string {
    return [message, ...this.#tail].join("\n").trimEnd();
  }

  /** Writes to standard input. Returns false if the pipe is full: wait for `onDrain`. */
  write(text: string): boolean {
    return this.#process.stdin.write(text);
  }

  /** Calls `callback` each time a full pipe has emptied. */
  onDrain(callback: () => void): void {
    this.#process.stdin.on("drain", callback);
  }

  /** Writes to standard input and closes it. */
  endInput(text: string): void {
    this.#process.stdin.end(text);
  }

  /** Sets whether the process keeps the event loop of this program alive. */
  setKeepAlive(keepAlive: boolean): void {
    for (const handle of this.#process.handles) {
      if (keepAlive) handle.ref();
      else handle.unref();
    }
  }

  /** Closes standard input; sends SIGINT after `timeoutMs` milliseconds, and SIGKILL 5 s later. */
  async stop(timeoutMs: number): Promise<ProcessExit> {
    if (!this.#isAlive) return this.exited;
    this.setKeepAlive(true);
    this.#process.stdin.end();
    // An immediate signal would be a second request, which aborts the graceful shutdown.
    const timers = [
      setTimeout(() => this.#process.kill("SIGINT"), timeoutMs),
      setTimeout(() => this.#process.kill("SIGKILL"), timeoutMs + KILL_DELAY_MS),
    ];
    try {
      return await this.exited;
    } finally {
      timers.forEach(clearTimeout);
    }
  }

  async #waitForExit(): Promise<ProcessExit> {
    const { stdout, stderr } = this.#process;
    const closed = Promise.all(
      [stdout, stderr].map((pipe) => new Promise((resolve) => pipe.once("close", resolve))),
    );
    const exit = await this.#process.exited;
    this.#isAlive = false;
    this.#removeExitHook();
    if (!exit.error) await Promise.race([closed, sleep(DRAIN_MS, undefined, { ref: true })]);
    stdout.destroy();
    stderr.destroy();
    return exit;
  }
}

/**
 * Describes an exit, as the end of a sentence.
 * @internal
 */
export function describeExit({ code, signal, error }: ProcessExit): string {
  if (error) return `can't be started: ${error.message}`;
  return signal ? `was ended by ${signal}` : `exited with status ${code}`;
}
