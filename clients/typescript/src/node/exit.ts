/** What is done about processes of ours when this program ends. */

/** What to do at the last moment, when nothing can be waited for any more. */
const killers = new Map<object, () => void>();
/** What to do when there is nothing left to do but to stop what runs. */
const stoppers = new Map<object, () => Promise<unknown>>();
let watching = false;

function watch(): void {
  if (watching) return;
  watching = true;
  process.on("exit", () => {
    for (const kill of killers.values()) kill();
  });
  // Node asks again when what is begun here has ended.
  process.on("beforeExit", () => {
    for (const stop of stoppers.values()) stop().catch(() => {});
  });
}

/** Has `kill` called when this program ends by `process.exit` or by an uncaught error. */
export function keep(child: object, kill: () => void): void {
  watch();
  killers.set(child, kill);
}

/** The child has ended. */
export function release(child: object): void {
  killers.delete(child);
}

/** Has `stop` called when this program has come to its natural end. */
export function stopAtEnd(owner: object, stop: () => Promise<unknown>): void {
  watch();
  stoppers.set(owner, stop);
}

/** The owner has stopped what it had started. */
export function stopped(owner: object): void {
  stoppers.delete(owner);
}
