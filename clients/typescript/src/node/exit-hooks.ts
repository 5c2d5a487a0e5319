/** Cleanup of child processes when this program ends. */

/** Callbacks for `process.exit` and uncaught errors; they can't be asynchronous. */
const exitHooks = new Set<() => void>();
/** Callbacks for when the event loop is empty. */
const beforeExitHooks = new Set<() => Promise<unknown>>();
let isInstalled = false;

function install(): void {
  if (isInstalled) return;
  isInstalled = true;
  process.on("exit", () => {
    for (const hook of exitHooks) hook();
  });
  // Node emits the event again after the work that is started here.
  process.on("beforeExit", () => {
    for (const hook of beforeExitHooks) hook().catch(() => {});
  });
}

/** Registers a callback for the exit of this program; returns a function that removes it. */
export function onExit(hook: () => void): () => void {
  install();
  exitHooks.add(hook);
  return () => exitHooks.delete(hook);
}

/** Registers a callback for when this program has no work left; `offBeforeExit` removes it. */
export function onBeforeExit(hook: () => Promise<unknown>): void {
  install();
  beforeExitHooks.add(hook);
}

export function offBeforeExit(hook: () => Promise<unknown>): void {
  beforeExitHooks.delete(hook);
}
