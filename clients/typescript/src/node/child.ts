/** Child processes with three pipes. One that outlives its thread doesn't stay as a zombie. */

import { spawn, type StdioOptions } from "node:child_process";
import type { Socket } from "node:net";
import { constants } from "node:os";
import type { Readable, Writable } from "node:stream";
import { isMainThread } from "node:worker_threads";

/** How a process ended. */
export interface ProcessExit {
  /** The exit status; null: a signal ended it, or it didn't start. */
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  /** Why it didn't start. */
  readonly error?: NodeJS.ErrnoException | undefined;
}

/**
 * A running process.
 * @internal
 */
export interface Child {
  /** undefined: it didn't start, or its process id isn't known yet. */
  readonly pid: number | undefined;
  readonly stdin: Writable;
  readonly stdout: Readable;
  readonly stderr: Readable;
  /** What keeps the event loop alive. */
  readonly handles: readonly { ref(): void; unref(): void }[];
  readonly exited: Promise<ProcessExit>;
  kill(signal: NodeJS.Signals): void;
}

interface SpawnOptions {
  readonly cwd?: string | undefined;
  readonly env?: NodeJS.ProcessEnv | undefined;
}

/**
 * A shell starts a second one in the background and exits, so that the system reaps the second. That
 * one runs the program, whose input is descriptor 4, and reports its process id and its exit status
 * at descriptor 3.
 */
const REPARENT = `
{
  "$@" <&4 3>&- 4<&- &
  echo $! >&3
  exec 4<&- >&- 2>&-
  wait $!
  echo $? >&3
} &
`;
const NOT_FOUND = new Set([126, 127]);
/** The status of a process that a signal ended is this plus the number of the signal. */
const SIGNAL_STATUS = 128;

/**
 * Starts a program. Node reaps a child only while the thread that started it runs, and
 * `terminate` ends a worker thread at once: there, the child gets another parent.
 * @internal
 */
export function spawnChild(command: readonly string[], options: SpawnOptions): Child {
  const isReparented = !isMainThread && process.platform !== "win32";
  return isReparented ? spawnReparented(command, options) : spawnDirectly(command, options);
}

function spawnDirectly([program = "", ...args]: readonly string[], options: SpawnOptions): Child {
  const child = spawn(program, args, { ...options, stdio: "pipe", windowsHide: true });
  const { stdin, stdout, stderr } = child;
  const exited = new Promise<ProcessExit>((resolve) => {
    child.once("exit", (code, signal) => resolve({ code, signal }));
    // A signal that can't be sent is an error as well, but of a process with an id.
    child.on("error", (error) => {
      if (child.pid === undefined) resolve({ code: null, signal: null, error });
    });
  });
  return {
    get pid() {
      return child.pid;
    },
    stdin,
    stdout,
    stderr,
    handles: [child, stdin as Socket, stdout as Socket, stderr as Socket],
    exited,
    kill: (signal) => void child.kill(signal),
  };
}

function spawnReparented(command: readonly string[], options: SpawnOptions): Child {
  // Node closes the standard input of a child that has exited, so that of the program is another.
  const stdio: StdioOptions = ["ignore", "pipe", "pipe", "pipe", "pipe"];
  const shell = spawn("/bin/sh", ["-c", REPARENT, "sh", ...command], { ...options, stdio });
  const [, ...pipes] = shell.stdio as unknown as [null, Socket, Socket, Socket, Socket];
  const [stdout, stderr, report, stdin] = pipes;
  let pid: number | undefined;
  let pendingSignal: NodeJS.Signals | undefined;
  const kill = (signal: NodeJS.Signals) => {
    // A shell without job control starts background processes that ignore SIGINT.
    if (pid === undefined) pendingSignal = signal === "SIGINT" ? "SIGTERM" : signal;
    else sendSignal(pid, signal === "SIGINT" ? "SIGTERM" : signal);
  };
  let text = "";
  report.on("data", (chunk: Buffer) => {
    text += chunk.toString();
    if (pid !== undefined || !text.includes("\n")) return;
    pid = Number.parseInt(text, 10);
    if (pendingSignal) sendSignal(pid, pendingSignal);
  });
  const exited = new Promise<ProcessExit>((resolve) => {
    report.once("close", () => resolve(parseExit(text.split("\n")[1], command[0] ?? "")));
    shell.once("error", (error) => resolve({ code: null, signal: null, error }));
  });
  return {
    get pid() {
      return pid;
    },
    stdin,
    stdout,
    stderr,
    handles: [shell, ...pipes],
    exited,
    kill,
  };
}

function sendSignal(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch {
    // It has ended.
  }
}

function parseExit(status: string | undefined, program: string): ProcessExit {
  const code = Number(status || SIGNAL_STATUS + constants.signals.SIGKILL);
  if (NOT_FOUND.has(code)) {
    const error = Object.assign(new Error(`spawn ${program} ENOENT`), { code: "ENOENT" });
    return { code: null, signal: null, error };
  }
  const signal = Object.entries(constants.signals).find(([, n]) => n === code - SIGNAL_STATUS)?.[0];
  return signal ? { code: null, signal: signal as NodeJS.Signals } : { code, signal: null };
}
