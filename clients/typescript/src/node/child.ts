/** A process of our own, which never outlives this program. */

import { type ChildProcessWithoutNullStreams, spawn } from "node:child_process";
import type { Socket } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { keep, release } from "./exit.js";
import { Lines } from "./lines.js";

/** Lines that are kept for the words of an error. */
const LAST_WORDS = 12;
/** Milliseconds for output to be read after the end; somebody else may hold the pipe open. */
const DRAIN_MS = 500;
/** Milliseconds between an interruption and a kill. */
const HURRY_MS = 5000;

/** How a process is started. */
export interface ProcessOptions {
  /** The program and its arguments; no shell reads them. */
  readonly command?: readonly string[] | undefined;
  /** Its environment; default: this program's. */
  readonly env?: NodeJS.ProcessEnv | undefined;
  /** Its working folder; default: this program's. */
  readonly cwd?: string | undefined;
  /** Gets each line that it prints for people while it starts. */
  readonly onProgress?: ((line: string) => void) | undefined;
}

/** How a process ended. */
export interface Exit {
  /** Its status; null: a signal ended it, or it never began. */
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  /** Why it never began. */
  readonly error?: NodeJS.ErrnoException | undefined;
}

/** What a child does beside running. */
export interface Ears {
  /** Each line of its standard output, if these aren't words for people. */
  readonly onLine?: (line: string) => void;
  readonly onDropped?: () => void;
  /** Each line for people. */
  readonly onWords?: ((line: string) => void) | undefined;
  /** What it gets when this program ends by `process.exit`. */
  readonly lastSignal: NodeJS.Signals;
}

/** Its standard input is a pipe that stays open while this program lives. */
export class Child {
  /** Resolves when it has ended and what it printed has been read. */
  readonly exited: Promise<Exit>;
  readonly #process: ChildProcessWithoutNullStreams;
  readonly #words: string[] = [];
  #alive = true;

  constructor(command: readonly string[], options: ProcessOptions, ears: Ears) {
    const [program = "", ...args] = command;
    const { cwd, env } = options;
    this.#process = spawn(program, args, { cwd, env, stdio: "pipe", windowsHide: true });
    const { stdin, stdout, stderr } = this.#process;
    // A child that has left doesn't read; that it left is known from its exit.
    stdin.on("error", () => {});
    const hear = (line: string) => {
      if (this.#words.push(line) > LAST_WORDS) this.#words.shift();
      ears.onWords?.(line);
    };
    const out = new Lines(ears.onLine ?? hear, ears.onDropped);
    const err = new Lines(hear);
    stdout.on("data", (chunk: Buffer) => out.push(chunk)).on("end", () => out.end());
    stderr.on("data", (chunk: Buffer) => err.push(chunk)).on("end", () => err.end());
    this.exited = this.#end();
    keep(this, () => this.#process.kill(ears.lastSignal));
  }

  get pid(): number | undefined {
    return this.#process.pid;
  }

  get alive(): boolean {
    return this.#alive;
  }

  /** The last lines that it printed for people. */
  get lastWords(): string {
    return this.#words.join("\n");
  }

  /** Writes; false: the pipe is full, wait for `onDrain` before writing more. */
  write(text: string): boolean {
    return this.#process.stdin.write(text);
  }

  /** Calls back each time that a full pipe has emptied. */
  onDrain(callback: () => void): void {
    this.#process.stdin.on("drain", callback);
  }

  /** Writes the last of its input. */
  endInput(text: string): void {
    this.#process.stdin.end(text);
  }

  /** Whether this program goes on while nothing but the child is left to wait for. */
  hold(holds: boolean): void {
    const { stdin, stdout, stderr } = this.#process;
    for (const one of [this.#process, stdin as Socket, stdout as Socket, stderr as Socket]) {
      if (holds) one.ref();
      else one.unref();
    }
  }

  /** Ends its input; after `graceMs` milliseconds it is interrupted, and then killed. */
  async stop(graceMs: number): Promise<Exit> {
    if (!this.#alive) return this.exited;
    this.hold(true);
    this.#process.stdin.end();
    // A signal at once would be a second request, which tells the service to hurry.
    const timers = [
      setTimeout(() => this.#process.kill("SIGINT"), graceMs),
      setTimeout(() => this.#process.kill("SIGKILL"), graceMs + HURRY_MS),
    ];
    try {
      return await this.exited;
    } finally {
      timers.forEach(clearTimeout);
    }
  }

  async #end(): Promise<Exit> {
    const closed = new Promise<void>((resolve) => this.#process.once("close", () => resolve()));
    const exit = await new Promise<Exit>((resolve) => {
      this.#process.once("exit", (code, signal) => resolve({ code, signal }));
      // Also when a signal can't be sent; then it runs on, and has a process id.
      this.#process.on("error", (error) => {
        if (this.pid === undefined) resolve({ code: null, signal: null, error });
      });
    });
    this.#alive = false;
    release(this);
    if (!exit.error) await Promise.race([closed, sleep(DRAIN_MS, undefined, { ref: true })]);
    this.#process.stdout.destroy();
    this.#process.stderr.destroy();
    return exit;
  }
}

/** An exit, in words. */
export function inWords({ code, signal, error }: Exit): string {
  if (error) return `can't be started: ${error.message}`;
  return signal ? `was ended by ${signal}` : `ended with status ${code}`;
}
