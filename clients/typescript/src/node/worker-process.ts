/** One life of a worker that stays up and speaks JSON lines. */

import { Deadline } from "../deadline.js";
import { TimeoutError, WorkerError } from "../errors.js";
import { fields } from "../wire.js";
import { Child, type Exit, inWords, type ProcessOptions } from "./child.js";

/** Milliseconds that a worker has to end by itself. */
const WORKER_STOP_MS = 5000;

/** An answer, without what it is an answer to. */
export type Answer = { readonly result: unknown } | { readonly error: string };

/** Who is told what a worker says. */
export interface Listener {
  /** false: nobody waits for an answer with this id. */
  onAnswer(id: string, answer: Answer): boolean;
  /** A line was no answer to anything. */
  onIgnored(): void;
  /** It takes requests again. */
  onDrain(): void;
}

/** Tells answers from everything else that it prints. */
export class WorkerProcess {
  readonly #child: Child;
  readonly #listener: Listener;
  #takes = true;
  #sayReady: () => void = () => {};
  readonly #ready = new Promise<void>((resolve) => (this.#sayReady = resolve));

  private constructor(command: readonly string[], options: ProcessOptions, listener: Listener) {
    this.#listener = listener;
    this.#child = new Child(command, options, {
      onLine: (line) => this.#hear(line),
      onDropped: () => listener.onIgnored(),
      onWords: options.onProgress,
      lastSignal: "SIGKILL",
    });
    this.#child.onDrain(() => {
      this.#takes = true;
      listener.onDrain();
    });
  }

  /**
   * Starts one, and waits until it is ready. None is left when it rejects.
   * @param life ends it early
   * @throws {WorkerError} it ended too soon, with its last words, or wasn't ready in time.
   */
  static async start(
    command: readonly string[],
    options: ProcessOptions,
    listener: Listener,
    readyTimeout: number,
    life: Deadline,
  ): Promise<WorkerProcess> {
    life.check();
    const worker = new WorkerProcess(command, options, listener);
    const deadline = new Deadline(readyTimeout);
    const off = life.onEnd(() => deadline.end(new WorkerError("The worker was stopped.")));
    const died = async () => {
      throw worker.crash(await worker.exited);
    };
    try {
      await deadline.race(() => Promise.race([worker.#ready, died()]));
      return worker;
    } catch (error) {
      await worker.stop();
      if (!(error instanceof TimeoutError)) throw error;
      const words = `The worker wasn't ready within ${readyTimeout} ms.`;
      throw new WorkerError(`${words}\n${worker.#child.lastWords}`.trimEnd(), { cause: error });
    } finally {
      off();
      deadline.end();
    }
  }

  /** Resolves when it has ended. */
  get exited(): Promise<Exit> {
    return this.#child.exited;
  }

  get pid(): number | undefined {
    return this.#child.pid;
  }

  /** Whether it reads what it is sent; if not, `onDrain` comes. */
  get takes(): boolean {
    return this.#takes && this.#child.alive;
  }

  /** Sends a line. */
  send(line: string): void {
    this.#takes = this.#child.write(line);
  }

  /** Whether this program goes on while nothing but the worker is left to wait for. */
  hold(holds: boolean): void {
    this.#child.hold(holds);
  }

  /** Asks it to end, and kills it after 5 s. */
  async stop(): Promise<void> {
    await this.#child.stop(WORKER_STOP_MS);
  }

  /** Its end, with its last words. */
  crash(exit: Exit): WorkerError {
    const words = `The worker ${inWords(exit)}.\n${this.#child.lastWords}`.trimEnd();
    return new WorkerError(words, exit.error && { cause: exit.error });
  }

  #hear(line: string): void {
    let said: unknown;
    try {
      said = JSON.parse(line);
    } catch {
      // Libraries print what they like.
    }
    const { id, status, result, error } = fields(said);
    if (status === "ready") return this.#sayReady();
    const answer =
      typeof error === "string" ? { error } : result === undefined ? undefined : { result };
    const isHeard =
      typeof id === "string" && answer !== undefined && this.#listener.onAnswer(id, answer);
    if (!isHeard) this.#listener.onIgnored();
  }
}
