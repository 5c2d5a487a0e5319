/** A process for each request: slow, since each loads the model, but it needs no server mode. */

import type { Deadline } from "../deadline.js";
import { ParseError, WorkerError } from "../errors.js";
import { fields } from "../wire.js";
import { Child, inWords, type ProcessOptions } from "./child.js";
import type { Request } from "./stdio-options.js";

/** Milliseconds that a process has to end by itself. */
const SHOT_STOP_MS = 2000;

/**
 * What one request comes to: `command encode-query TEXT`, or `command encode-batch` with the texts
 * as a JSON list on standard input.
 * @throws {WorkerError} the process can't be started, or failed, with its last words.
 * @throws {ParseError} its last line isn't a JSON result.
 */
export async function oneShot(
  command: readonly string[],
  options: ProcessOptions,
  { command: name, params }: Request,
  deadline: Deadline,
): Promise<unknown> {
  const isQuery = "text" in params;
  let result = "";
  // A text that begins with a dash would be taken for an option.
  const text = isQuery ? [...(params.text.startsWith("-") ? ["--"] : []), params.text] : [];
  const child = start([...command, name, ...text], options, (line) => {
    if (line.trim()) result = line;
  });
  child.endInput(isQuery ? "" : JSON.stringify(params.texts));
  try {
    const exit = await deadline.race(() => child.exited);
    const told = parsed(result);
    const { error } = fields(told);
    if (typeof error === "string") throw new WorkerError(error);
    if (exit.code !== 0) {
      const words = `The process ${inWords(exit)}.\n${child.lastWords}`.trimEnd();
      throw new WorkerError(words, exit.error && { cause: exit.error });
    }
    if (told === undefined) throw new ParseError("The process printed no JSON.");
    return Array.isArray(told) ? told : fields(told)["result"];
  } finally {
    await child.stop(SHOT_STOP_MS);
  }
}

function start(
  command: readonly string[],
  options: ProcessOptions,
  onLine: (line: string) => void,
): Child {
  try {
    return new Child(command, options, { onLine, lastSignal: "SIGKILL" });
  } catch (error) {
    // Such as a text with a null character in it, or one that is too long for an argument.
    throw new WorkerError(`The process can't be started: ${(error as Error).message}`, {
      cause: error,
    });
  }
}

function parsed(line: string): unknown {
  try {
    return JSON.parse(line);
  } catch {
    return undefined;
  }
}
