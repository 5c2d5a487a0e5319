/** A worker process that keeps a model loaded and serves it over standard input and output. */

import { randomUUID } from "node:crypto";
import { Deadline } from "../deadline.js";
import { ParseError, WorkerError } from "../errors.js";
import { createLog, type Log } from "../log.js";
import {
  CALL_OPTIONS,
  type CallOptions,
  checkIntegers,
  checkNames,
  checkNumbers,
  withDefaults,
} from "../options.js";
import { checkEqualLengths, parseVector } from "../wire.js";
import { offBeforeExit, onBeforeExit } from "./exit-hooks.js";
import { describeExit } from "./managed-process.js";
import { runOnce } from "./one-shot.js";
import { RestartBackoff } from "./restart-backoff.js";
import {
  type StdioWorkerOptions,
  WORKER_DEFAULTS,
  WORKER_OPTIONS,
  type WorkerRequest,
  type WorkerState,
  type WorkerStatus,
} from "./stdio-worker-options.js";
import { withMode } from "./worker-command.js";
import { type Reply, WorkerProcess } from "./worker-process.js";

/** A request that crashes the worker must not crash it again and again. */
const MAX_SENDS = 2;

/** A request without a reply. */
interface PendingRequest {
  readonly request: WorkerRequest;
  readonly deadline: Deadline;
  readonly resolve: (result: unknown) => void;
  readonly reject: (error: unknown) => void;
  /** The number of processes that it was sent to. */
  sends: number;
}

/**
 * Starts `embedserve stdio`, restarts it after a crash, and stops it when this program ends.
 * Requests that a crashed worker left without a reply are sent once more. If the worker keeps
 * failing, each request gets a process of its own, one at a time, until `stop` and `start`.
 *
 * An idle worker doesn't keep the event loop alive.
 */
export class StdioWorker {
  readonly #options: StdioWorkerOptions;
  readonly #command: readonly string[];
  readonly #settings: typeof WORKER_DEFAULTS;
  readonly #log: Log;
  readonly #pending = new Map<string, PendingRequest>();
  /** The ids of pending requests that wait for a process that accepts them. */
  readonly #unsent = new Set<string>();
  readonly #stopBeforeExit = () => this.stop();
  #state: WorkerState = "stopped";
  #worker: WorkerProcess | undefined;
  #backoff: RestartBackoff;
  #readyAt = 0;
  #ignoredLines = 0;
  #lastError: Error | undefined;
  /** Aborts on `stop`. */
  #lifetime = new Deadline(Infinity);
  /** Settles when the current start or restart ends. */
  #transition: Promise<void> = Promise.resolve();
  #stopping: Promise<void> | undefined;
  /** Settles when the last of the one-shot processes has ended. */
  #lastOneShot: Promise<unknown> = Promise.resolve();

  /**
   * Creates a worker without starting its process.
   * @throws {TypeError} an option has an invalid value, or there is no such option.
   */
  constructor(options: StdioWorkerOptions = {}) {
    checkNames(options, WORKER_OPTIONS);
    this.#settings = withDefaults(WORKER_DEFAULTS, options);
    checkNumbers(this.#settings, ["timeoutMs", "readyTimeoutMs", "restartDelayMs"]);
    checkNumbers(this.#settings, ["stopTimeoutMs"]);
    checkIntegers(this.#settings, ["maxRestarts"], 0);
    this.#log = createLog(options.logger, "WORKER");
    this.#options = options;
    this.#command = options.command ?? ["embedserve", "stdio"];
    this.#backoff = this.#createBackoff();
  }

  /**
   * Starts the process if it isn't running. Resolves when it is ready, or when it has kept failing
   * and the state is `one-shot`.
   * @throws {WorkerError} there is no such program, or the worker was stopped.
   */
  async start(options: CallOptions = {}): Promise<WorkerStatus> {
    checkNames(options, CALL_OPTIONS);
    const deadline = new Deadline(options.timeoutMs ?? Infinity, options.signal);
    try {
      await deadline.race(() => this.#ensureStarted());
      return this.status();
    } finally {
      deadline.abort();
    }
  }

  /**
   * Closes the standard input of the process, kills it 5 s after `stopTimeoutMs`, and rejects all
   * requests.
   */
  stop(): Promise<void> {
    if (this.#state === "stopped") return Promise.resolve();
    this.#stopping ??= this.#stop().finally(() => (this.#stopping = undefined));
    return this.#stopping;
  }

  /** Returns the current status. */
  status(): WorkerStatus {
    return {
      state: this.#state,
      pid: this.#worker?.pid,
      restarts: this.#backoff.restarts,
      pending: this.#pending.size,
      ignoredLines: this.#ignoredLines,
      lastError: this.#lastError,
    };
  }

  /**
   * Embeds a search query, and starts the process if it isn't running. The timeout of the request
   * includes the wait for a restart, but the wait for the first start only if `timeoutMs` is set
   * here.
   * @throws {WorkerError} the worker returned an error, crashed twice during the request, or was
   *   stopped.
   * @throws {RequestTimeoutError} there was no reply in time.
   * @throws {ParseError} the reply isn't a vector.
   */
  async encodeQuery(text: string, options: CallOptions = {}): Promise<Float32Array> {
    if (typeof text !== "string") throw new TypeError("`text` must be a string.");
    return parseVector(
      await this.request({ command: "encode-query", params: { text } }, options),
    );
  }

  /** Embeds documents, in order; otherwise like `encodeQuery`. */
  async encodeBatch(texts: readonly string[], options: CallOptions = {}): Promise<Float32Array[]> {
    if (!Array.isArray(texts) || !texts.every((text) => typeof text === "string")) {
      throw new TypeError("`texts` must be a list of strings.");
    }
    if (texts.length === 0) return [];
    const result = await this.request({ command: "encode-batch", params: { texts } }, options);
    if (!Array.isArray(result)) throw new ParseError("The result of the worker isn't a list.");
    if (result.length !== texts.length) {
      throw new ParseError(
        `The worker returned ${result.length} vectors for ${texts.length} texts.`,
      );
    }
    const rows = result.map(parseVector);
    checkEqualLengths(rows);
    return rows;
  }

  /**
   * Sends a request and returns its result.
   * @internal
   */
  async request(request: WorkerRequest, options: CallOptions): Promise<unknown> {
    checkNames(options, CALL_OPTIONS);
    const { signal, timeoutMs } = options;
    const isStarted = this.#state !== "stopped" && this.#state !== "starting";
    if (!isStarted && timeoutMs === undefined) await this.start({ signal });
    const deadline = new Deadline(timeoutMs ?? this.#settings.timeoutMs, signal);
    const id = randomUUID();
    try {
      return await deadline.race(() => {
        const reply = new Promise((resolve, reject) => {
          this.#pending.set(id, { request, deadline, resolve, reject, sends: 0 });
        });
        this.#unsent.add(id);
        this.#updateKeepAlive();
        // If the start fails, `#rejectAll` has rejected the request.
        this.#ensureStarted().then(() => this.#sendUnsent(), () => {});
        return reply;
      });
    } finally {
      deadline.abort();
      this.#pending.delete(id);
      this.#unsent.delete(id);
      this.#updateKeepAlive();
    }
  }

  /** Keeps the event loop alive while requests are pending. */
  #updateKeepAlive(): void {
    if (this.#state === "ready") this.#worker?.setKeepAlive(this.#pending.size > 0);
  }

  /** Starts the process unless it is started; resolves when requests can be sent. */
  #ensureStarted(): Promise<void> {
    if (this.#stopping) return this.#stopping.then(() => this.#ensureStarted());
    if (this.#state === "stopped") {
      this.#state = "starting";
      this.#backoff = this.#createBackoff();
      this.#lifetime = new Deadline(Infinity);
      onBeforeExit(this.#stopBeforeExit);
      this.#setTransition(this.#startProcess(0));
    }
    return this.#transition;
  }

  #setTransition(transition: Promise<void>): void {
    this.#transition = transition;
    // Without a handler, Node would end the program if no call is waiting.
    transition.catch(() => {});
  }

  async #restartAfterCrash(): Promise<void> {
    await this.#startProcess(this.#backoff.next(performance.now() - this.#readyAt));
  }

  /** Starts processes until one is ready or the limit of restarts is reached. */
  async #startProcess(firstDelayMs: number | undefined): Promise<void> {
    const lifetime = this.#lifetime;
    for (let delayMs = firstDelayMs; delayMs !== undefined; delayMs = this.#backoff.next(0)) {
      if (this.#backoff.inRow > 0) {
        this.#log.info(`Restart ${this.#backoff.inRow} in ${delayMs} ms.`);
      }
      await lifetime.sleep(delayMs);
      try {
        this.#worker = await this.#launch(lifetime);
        return this.#onReady(this.#worker);
      } catch (error) {
        lifetime.throwIfAborted();
        this.#lastError = error as Error;
        this.#log.warn(this.#lastError.message);
        if (((error as Error).cause as NodeJS.ErrnoException)?.code === "ENOENT") {
          this.#state = "stopped";
          offBeforeExit(this.#stopBeforeExit);
          this.#rejectAll(error);
          throw error;
        }
      }
    }
    this.#state = "one-shot";
    this.#log.warn("The worker keeps failing: each request gets a process of its own.");
    this.#sendUnsent();
  }

  #launch(lifetime: Deadline): Promise<WorkerProcess> {
    const handlers = {
      onReply: (id: string, reply: Reply) => this.#settle(id, reply),
      onIgnored: () => void this.#ignoredLines++,
      onDrain: () => this.#sendUnsent(),
    };
    const command = withMode(this.#command, "server");
    return WorkerProcess.start(
      command,
      this.#options,
      this.#settings,
      handlers,
      this.#log,
      lifetime,
    );
  }

  #onReady(worker: WorkerProcess): void {
    this.#state = "ready";
    this.#readyAt = performance.now();
    this.#updateKeepAlive();
    this.#log.info(`The worker is ready (process ${worker.pid}).`);
    void worker.exited.then((exit) => {
      if (this.#stopping || this.#worker !== worker) return;
      this.#worker = undefined;
      this.#state = "restarting";
      this.#lastError = worker.exitError(exit);
      this.#log.warn(`The worker ${describeExit(exit)}.`);
      this.#requeueSent(this.#lastError);
      this.#setTransition(this.#restartAfterCrash());
    });
    this.#sendUnsent();
  }

  /** Queues the requests of a crashed process again; rejects those that were sent too often. */
  #requeueSent(error: Error): void {
    for (const [id, { sends, reject }] of this.#pending) {
      if (sends >= MAX_SENDS) reject(error);
      else if (sends > 0) this.#unsent.add(id);
    }
  }

  /** Sends queued requests until the pipe is full. */
  #sendUnsent(): void {
    for (const id of this.#unsent) {
      const pending = this.#pending.get(id);
      if (this.#state === "one-shot") {
        if (pending) this.#runOneShot(pending);
      } else if (this.#state === "ready" && this.#worker?.isWritable) {
        if (pending) {
          pending.sends++;
          this.#worker.send(`${JSON.stringify({ id, ...pending.request })}\n`);
        }
      } else return;
      this.#unsent.delete(id);
    }
  }

  #runOneShot({ request, deadline, resolve, reject }: PendingRequest): void {
    const lifetime = this.#lifetime;
    const run = async () => {
      deadline.throwIfAborted();
      const oneShot = lifetime.child(deadline.remainingMs);
      const unsubscribe = deadline.onAbort(() => oneShot.abort());
      try {
        return await runOnce(this.#command, this.#options, request, oneShot);
      } finally {
        unsubscribe();
        oneShot.abort();
      }
    };
    // One at a time, because each process loads the model.
    const oneShot = this.#lastOneShot.then(run);
    this.#lastOneShot = oneShot.catch(() => {});
    oneShot.then(resolve, reject);
  }

  #settle(id: string, reply: Reply): boolean {
    const pending = this.#pending.get(id);
    if (!pending) return false;
    if ("error" in reply) pending.reject(new WorkerError(reply.error));
    else pending.resolve(reply.result);
    return true;
  }

  #rejectAll(error: unknown): void {
    for (const { reject } of this.#pending.values()) reject(error);
  }

  async #stop(): Promise<void> {
    this.#state = "stopping";
    const error = new WorkerError("The worker was stopped.");
    this.#lifetime.abort(error);
    this.#rejectAll(error);
    await this.#transition.catch(() => {});
    await this.#worker?.stop();
    await this.#lastOneShot;
    this.#worker = undefined;
    this.#state = "stopped";
    offBeforeExit(this.#stopBeforeExit);
  }

  #createBackoff(): RestartBackoff {
    return new RestartBackoff(this.#settings.restartDelayMs, this.#settings.maxRestarts);
  }
}
