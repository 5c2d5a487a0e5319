/** A worker that keeps the model loaded and is spoken to over its standard input and output. */

import { randomUUID } from "node:crypto";
import { Deadline } from "../deadline.js";
import { ParseError, WorkerError } from "../errors.js";
import { atLeast, type CallOptions, whole } from "../options.js";
import { checkWidths, vector } from "../wire.js";
import { stopAtEnd, stopped } from "./exit.js";
import { oneShot } from "./oneshot.js";
import { Restarts } from "./restarts.js";
import type { Request, WorkerOptions, WorkerState, WorkerStatus } from "./stdio-options.js";
import { type Answer, WorkerProcess } from "./worker-process.js";

/** A request without an answer. */
interface Pending {
  readonly request: Request;
  readonly deadline: Deadline;
  readonly resolve: (result: unknown) => void;
  readonly reject: (error: unknown) => void;
  /** Workers that it was sent to. */
  sent: number;
}

/**
 * Starts the worker, keeps it up, and stops it when this program ends. What a worker that dies
 * leaves unanswered is sent once more, to the next one. When none stays up, each request gets a
 * process of its own, one after the other; `stop` and `start` try the worker again.
 *
 * An idle worker doesn't keep this program from ending.
 */
export class StdioWorker {
  readonly #options: WorkerOptions;
  readonly #command: readonly string[];
  readonly #requestTimeout: number;
  readonly #readyTimeout: number;
  readonly #pending = new Map<string, Pending>();
  /** Ids of those that wait for a worker that takes them. */
  readonly #unsent = new Set<string>();
  #state: WorkerState = "stopped";
  #worker: WorkerProcess | undefined;
  #restarts: Restarts;
  #readyAt = 0;
  #ignored = 0;
  #lastError: Error | undefined;
  /** Ends when it is told to stop. */
  #life = new Deadline(Infinity);
  /** The start or the restarts under way. */
  #run: Promise<void> = Promise.resolve();
  #stopping: Promise<void> | undefined;
  /** The last of the processes for one request. */
  #turn: Promise<unknown> = Promise.resolve();

  /** @throws {TypeError} an option can't be used. */
  constructor(options: WorkerOptions = {}) {
    this.#options = options;
    this.#command = options.command ?? ["embedserve", "stdio"];
    this.#requestTimeout = atLeast("requestTimeout", options.requestTimeout ?? 30_000, 0);
    this.#readyTimeout = atLeast("readyTimeout", options.readyTimeout ?? 600_000, 0);
    this.#restarts = this.#newRestarts();
  }

  /**
   * Starts the worker, unless it runs, and waits until it is ready or, after some restarts, given
   * up for processes that answer one request each.
   * @throws {WorkerError} there is no such program, or it was stopped meanwhile.
   */
  async start(options: CallOptions = {}): Promise<WorkerStatus> {
    const deadline = new Deadline(options.timeout ?? Infinity, options.signal);
    try {
      await deadline.race(() => this.#begin());
      return this.getStatus();
    } finally {
      deadline.end();
    }
  }

  /** Stops the worker: asks it to end, and kills it after 5 s. What is unanswered is rejected. */
  stop(): Promise<void> {
    if (this.#state === "stopped") return Promise.resolve();
    this.#stopping ??= this.#stop().finally(() => (this.#stopping = undefined));
    return this.#stopping;
  }

  /** How it is. */
  getStatus(): WorkerStatus {
    return {
      state: this.#state,
      pid: this.#worker?.pid,
      restarts: this.#restarts.inRow,
      pending: this.#pending.size,
      ignored: this.#ignored,
      lastError: this.#lastError,
    };
  }

  /**
   * The vector of what somebody looks for; starts the worker if it doesn't run. Waiting for a
   * restart is part of the time that the request has; waiting for the first start only if a
   * `timeout` is given here.
   * @throws {WorkerError} the worker's own error, or it died twice with this request, or was
   *   stopped.
   * @throws {TimeoutError | ParseError} no answer came in time, or none that is a vector.
   */
  async encodeQuery(text: string, options: CallOptions = {}): Promise<Float32Array> {
    if (typeof text !== "string") throw new TypeError("text must be a string.");
    return vector(await this.#ask({ command: "encode-query", params: { text } }, options));
  }

  /** Vectors of texts, in their order; errors as `encodeQuery`. */
  async encodeBatch(texts: readonly string[], options: CallOptions = {}): Promise<Float32Array[]> {
    if (!Array.isArray(texts) || !texts.every((text) => typeof text === "string")) {
      throw new TypeError("texts must be a list of strings.");
    }
    if (texts.length === 0) return [];
    const result = await this.#ask({ command: "encode-batch", params: { texts } }, options);
    if (!Array.isArray(result)) throw new ParseError("The worker's result is no list.");
    if (result.length !== texts.length) {
      throw new ParseError(`${result.length} vectors came for ${texts.length} texts.`);
    }
    const rows = result.map(vector);
    checkWidths(rows);
    return rows;
  }

  async #ask(request: Request, { signal, timeout }: CallOptions): Promise<unknown> {
    const isUp = this.#state !== "stopped" && this.#state !== "starting";
    if (!isUp && timeout === undefined) await this.start({ signal });
    const deadline = new Deadline(timeout ?? this.#requestTimeout, signal);
    const id = randomUUID();
    try {
      return await deadline.race(() => {
        const answer = new Promise((resolve, reject) => {
          this.#pending.set(id, { request, deadline, resolve, reject, sent: 0 });
        });
        this.#unsent.add(id);
        this.#hold();
        // Whoever waits in vain for a start is told by `#giveUp`.
        this.#begin().then(() => this.#send(), () => {});
        return answer;
      });
    } finally {
      deadline.end();
      this.#pending.delete(id);
      this.#unsent.delete(id);
      this.#hold();
    }
  }

  /** Only what is asked keeps this program from ending. */
  #hold(): void {
    if (this.#state === "ready") this.#worker?.hold(this.#pending.size > 0);
  }

  /** Resolves when requests are answered, which it sees to. */
  #begin(): Promise<void> {
    if (this.#stopping) return this.#stopping.then(() => this.#begin());
    if (this.#state === "stopped") {
      this.#state = "starting";
      this.#restarts = this.#newRestarts();
      this.#life = new Deadline(Infinity);
      stopAtEnd(this, () => this.stop());
      this.#go(this.#serve(false));
    }
    return this.#run;
  }

  #go(run: Promise<void>): void {
    this.#run = run;
    // Nobody may be waiting for it.
    run.catch(() => {});
  }

  /** Until there is a worker, or there will be none. */
  async #serve(hasCrashed: boolean): Promise<void> {
    const life = this.#life;
    const upMs = hasCrashed ? performance.now() - this.#readyAt : 0;
    for (let wait = hasCrashed ? this.#restarts.next(upMs) : 0; ; wait = this.#restarts.next(0)) {
      if (wait === undefined) break;
      await life.sleep(wait);
      try {
        this.#worker = await this.#launch(life);
        return this.#becomeReady(this.#worker);
      } catch (error) {
        life.check();
        this.#lastError = error as Error;
        if (((error as Error).cause as NodeJS.ErrnoException)?.code === "ENOENT") {
          this.#state = "stopped";
          stopped(this);
          this.#giveUp(error);
          throw error;
        }
      }
    }
    this.#state = "one-shot";
    this.#send();
  }

  #launch(life: Deadline): Promise<WorkerProcess> {
    const listener = {
      onAnswer: (id: string, answer: Answer) => this.#settle(id, answer),
      onIgnored: () => void this.#ignored++,
      onDrain: () => this.#send(),
    };
    return WorkerProcess.start(this.#command, this.#options, listener, this.#readyTimeout, life);
  }

  #becomeReady(worker: WorkerProcess): void {
    this.#state = "ready";
    this.#readyAt = performance.now();
    this.#hold();
    void worker.exited.then((exit) => {
      if (this.#stopping || this.#worker !== worker) return;
      this.#worker = undefined;
      this.#state = "restarting";
      this.#lastError = worker.crash(exit);
      this.#takeBack(this.#lastError);
      this.#go(this.#serve(true));
    });
    this.#send();
  }

  /** What a dead worker leaves unanswered. */
  #takeBack(error: Error): void {
    for (const [id, { sent, reject }] of this.#pending) {
      if (sent >= 2) reject(error);
      else if (sent === 1) this.#unsent.add(id);
    }
  }

  /** Sends what waits, as far as it is taken. */
  #send(): void {
    for (const id of this.#unsent) {
      const pending = this.#pending.get(id);
      if (this.#state === "one-shot") {
        if (pending) this.#sendAlone(pending);
      } else if (this.#state === "ready" && this.#worker?.takes) {
        if (pending) {
          pending.sent++;
          this.#worker.send(`${JSON.stringify({ id, ...pending.request })}\n`);
        }
      } else return;
      this.#unsent.delete(id);
    }
  }

  #sendAlone({ request, deadline, resolve, reject }: Pending): void {
    const life = this.#life;
    const shot = async () => {
      deadline.check();
      life.check();
      const off = life.onEnd(() => deadline.end(new WorkerError("The worker was stopped.")));
      try {
        return await oneShot(this.#command, this.#options, request, deadline);
      } finally {
        off();
      }
    };
    // In turn, since each of them loads the model.
    const turn = this.#turn.then(shot);
    this.#turn = turn.catch(() => {});
    turn.then(resolve, reject);
  }

  #settle(id: string, answer: Answer): boolean {
    const pending = this.#pending.get(id);
    if (!pending) return false;
    if ("error" in answer) pending.reject(new WorkerError(answer.error));
    else pending.resolve(answer.result);
    return true;
  }

  #giveUp(error: unknown): void {
    for (const { reject } of this.#pending.values()) reject(error);
  }

  async #stop(): Promise<void> {
    this.#state = "stopping";
    const error = new WorkerError("The worker was stopped.");
    this.#life.end(error);
    this.#giveUp(error);
    await this.#run.catch(() => {});
    await this.#worker?.stop();
    await this.#turn;
    this.#worker = undefined;
    this.#state = "stopped";
    stopped(this);
  }

  #newRestarts(): Restarts {
    const { restartDelay = 1000, maxRestarts = 3 } = this.#options;
    return new Restarts(
      atLeast("restartDelay", restartDelay, 0),
      whole("maxRestarts", maxRestarts, 0),
    );
  }
}
