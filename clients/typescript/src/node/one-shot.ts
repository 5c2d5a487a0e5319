/** One process per request: slow, because each process loads the model. */

import type { Deadline } from "../deadline.js";
import { ParseError, WorkerError } from "../errors.js";
import { asRecord } from "../wire.js";
import { describeExit, ManagedProcess, type ProcessOptions } from "./managed-process.js";
import { withMode } from "./worker-command.js";
import type { WorkerRequest } from "./stdio-worker-options.js";

/** Milliseconds in which a process must exit on its own. */
const STOP_TIMEOUT_MS = 2000;

/**
 * Runs `command encode-query TEXT`, or `command encode-batch` with the texts as a JSON list on
 * standard input. Returns the result on the last line of its output.
 * @throws {WorkerError} the process can't be started or failed; the message ends with its output.
 * @throws {ParseError} the last line isn't a JSON result.
 */
export async function runOnce(
  command: readonly string[],
  options: ProcessOptions,
  request: WorkerRequest,
  deadline: Deadline,
): Promise<unknown> {
  const { command: name, params } = request;
  if (name === "embed") throw new WorkerError("A process for a single request has no `embed`.");
  const isQuery = "text" in params;
  let lastLine = "";
  // Without `--`, a text that starts with a dash would be parsed as an option.
  const text = isQuery ? [...(params.text.startsWith("-") ? ["--"] : []), params.text] : [];
  const child = spawnProcess(withMode(command, name, ...text), options, (line) => {
    if (line.trim()) lastLine = line;
  });
  child.endInput(isQuery ? "" : JSON.stringify(params.texts));
  try {
    const exit = await deadline.race(() => child.exited);
    const reply = parseJson(lastLine);
    const { error } = asRecord(reply);
    if (typeof error === "string") throw new WorkerError(error);
    if (exit.code !== 0) {
      const message = child.withLog(`The process ${describeExit(exit)}.`);
      throw new WorkerError(message, exit.error && { cause: exit.error });
    }
    if (reply === undefined) throw new ParseError("The process printed no JSON.");
    return Array.isArray(reply) ? reply : asRecord(reply)["result"];
  } finally {
    await child.stop(STOP_TIMEOUT_MS);
  }
}

function spawnProcess(
  command: readonly string[],
  options: ProcessOptions,
  onLine: (line: string) => void,
): ManagedProcess {
  try {
    return new ManagedProcess(command, options, { onLine, exitSignal: "SIGKILL" });
  } catch (error) {
    // For example, the text contains a null character or is too long for an argument.
    throw new WorkerError(`The process can't be started: ${(error as Error).message}`, {
      cause: error,
    });
  }
}

function parseJson(line: string): unknown {
  try {
    return JSON.parse(line);
  } catch {
    return undefined;
  }
}
