/** The environment of Node; a browser has none. */

/** Returns an environment variable; undefined: unset or empty, or there is no environment. */
export function environmentVariable(name: string): string | undefined {
  const { process } = globalThis as { process?: { env?: Record<string, string | undefined> } };
  return process?.env?.[name] || undefined;
}
