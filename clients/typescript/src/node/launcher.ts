/** From nothing on a port to a healthy service there. */

import { EmbedClient } from "../client.js";
import { Deadline } from "../deadline.js";
import { type EmbedError, HttpError, ParseError, SidecarError, TimeoutError } from "../errors.js";
import { atLeast } from "../options.js";
import { Child, type Exit, inWords } from "./child.js";
import type { SidecarOptions } from "./sidecar-options.js";

/** Milliseconds that a service has to end by itself. */
export const SERVICE_STOP_MS = 30_000;
/** Milliseconds that it has to say whether it is healthy, and between two such questions. */
const PROBE_MS = 2000;
const POLL_MS = 250;

/** Launches a service, as often as it is told to. */
export class Launcher {
  readonly #options: SidecarOptions;
  readonly #command: readonly string[];
  readonly #port: number;
  readonly #readyTimeout: number;
  readonly #probe: EmbedClient;

  /** @throws {TypeError} an option can't be used. */
  constructor(options: SidecarOptions, port: number) {
    const command = [...(options.command ?? ["embedserve", "serve", "--until-eof"])];
    if (options.config !== undefined) {
      command.splice(command.indexOf("serve") + 1 || command.length, 0, options.config);
    }
    this.#command = [...command, "--port", String(port)];
    this.#options = options;
    this.#port = port;
    this.#readyTimeout = atLeast("readyTimeout", options.readyTimeout ?? 600_000, 0);
    this.#probe = new EmbedClient({ ...options.client, port, retryAttempts: 0 });
  }

  /**
   * Resolves when somebody on the port is healthy: to undefined if that is whoever was there, else
   * to the child that was started. No child is left when it rejects.
   * @param life ends it early
   * @throws {SidecarError} the child ended too soon, wasn't ready in time, or can't have the port.
   */
  async launch(life: Deadline): Promise<Child | undefined> {
    const found = await life.race(() => this.#look());
    if (found === true) return undefined;
    if (found) {
      const words = `What answers on port ${this.#port} isn't a service that is ready.`;
      throw new SidecarError(words, { cause: found });
    }
    let starting = true;
    const child = new Child(this.#command, this.#options, {
      onWords: (line) => starting && this.#options.onProgress?.(line),
      lastSignal: "SIGINT",
    });
    const deadline = new Deadline(this.#readyTimeout);
    const off = life.onEnd(() => deadline.end(new SidecarError("The sidecar was stopped.")));
    try {
      await deadline.race(() => Promise.race([this.#untilHealthy(deadline), died(child)]));
      return child;
    } catch (error) {
      await child.stop(SERVICE_STOP_MS);
      life.check();
      if (error instanceof TimeoutError) {
        const words = `The service wasn't ready within ${this.#readyTimeout} ms.`;
        throw new SidecarError(`${words}\n${child.lastWords}`.trimEnd(), { cause: error });
      }
      // Of two programs that start one at the same time, the port is the first one's.
      if (await life.race(() => this.answers())) return undefined;
      throw error;
    } finally {
      starting = false;
      off();
      deadline.end();
    }
  }

  /** Whether there is a healthy service on the port. */
  async answers(): Promise<boolean> {
    return (await this.#look()) === true;
  }

  /** Whether a healthy service is there; or the error that says that it isn't one at all. */
  async #look(): Promise<boolean | EmbedError> {
    try {
      await this.#probe.checkHealth({ timeout: PROBE_MS });
      return true;
    } catch (error) {
      const isStrange =
        error instanceof ParseError || (error instanceof HttpError && error.status < 500);
      return isStrange && error;
    }
  }

  /** What its proxy says before the service is there may look strange, too. */
  async #untilHealthy(deadline: Deadline): Promise<void> {
    while (!(await this.answers())) await deadline.sleep(POLL_MS);
  }
}

async function died(child: Child): Promise<never> {
  throw crash(await child.exited, child);
}

/** A child's end, with its last words. */
export function crash(exit: Exit, child: Child): SidecarError {
  const words = `The service ${inWords(exit)}.\n${child.lastWords}`.trimEnd();
  return new SidecarError(words, exit.error && { cause: exit.error });
}
