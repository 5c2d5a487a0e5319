/** The command line of a worker in each of its modes. */

/** Returns `command` with a mode and its arguments in place of the mode `server`, if it has one. */
export function withMode(command: readonly string[], ...mode: readonly string[]): string[] {
  const base = endsWithServer(command) ? command.slice(0, -1) : command;
  // An option with an optional value, such as `--start`, would take the mode for its value.
  const separator = base.at(-1)?.startsWith("-") ? ["--"] : [];
  return [...base, ...separator, ...mode];
}

/** `python -m server` runs a module of this name. */
function endsWithServer(command: readonly string[]): boolean {
  return command.length > 1 && command.at(-1) === "server" && command.at(-2) !== "-m";
}
