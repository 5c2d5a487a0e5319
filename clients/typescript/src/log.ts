/** What this package logs, and where. Messages never contain a text or an API key. */

import { environmentVariable } from "./environment.js";

interface Levels {
  debug?(message: string): void;
  warn(message: string): void;
  error(message: string): void;
}

/** The methods of a logger that are called; `console`, pino, winston and NestJS' have them. */
export type Logger = Levels & ({ info(message: string): void } | { log(message: string): void });

/** @internal */
export type Log = Readonly<Record<"debug" | "info" | "warn" | "error", (message: string) => void>>;

const ignore = () => {};
const SILENT: Log = { debug: ignore, info: ignore, warn: ignore, error: ignore };

/**
 * Returns the log of one object: the caller's logger, or standard error if the comma-separated
 * environment variable `LOG_CATEGORIES` contains the category, or none.
 * @throws {TypeError} `logger` lacks a method.
 * @internal
 */
export function createLog(logger: Logger | undefined, category: string): Log {
  if (logger !== undefined) return adapt(logger);
  const categories = environmentVariable("LOG_CATEGORIES")?.split(",") ?? [];
  if (!categories.some((name) => name.trim() === category)) return SILENT;
  const write = (level: string) => (message: string) =>
    console.error(`[${category}] ${level} ${message}`);
  return { debug: write("debug"), info: write("info"), warn: write("warn"), error: write("error") };
}

function adapt(logger: Logger): Log {
  const inform = "info" in logger ? "info" : "log";
  const methods = logger as unknown as Record<string, (message: string) => void>;
  for (const name of [inform, "warn", "error"]) {
    if (typeof methods[name] === "function") continue;
    throw new TypeError(`\`logger\` has no method \`${name}\`. Pass \`console\`, for example.`);
  }
  return {
    debug: (message) => logger.debug?.(message),
    info: (message) => methods[inform]?.(message),
    warn: (message) => logger.warn(message),
    error: (message) => logger.error(message),
  };
}
