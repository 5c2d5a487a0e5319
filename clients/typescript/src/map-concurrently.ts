/** Concurrent work with a limit. */

import type { Deadline } from "./deadline.js";

/**
 * Calls `work` for each item, for at most `concurrency` of them at once, and returns the results in
 * order. The first error aborts the deadline, which ends the calls in progress.
 */
export async function mapConcurrently<T, R>(
  items: readonly T[],
  concurrency: number,
  deadline: Deadline,
  work: (item: T) => Promise<R>,
): Promise<R[]> {
  const results = new Array<R>(items.length);
  // All runners share one iterator, so each item is processed once.
  const entries = items.entries();
  const run = async () => {
    for (const [i, item] of entries) results[i] = await work(item);
  };
  const runners = Array.from({ length: Math.min(concurrency, items.length) }, run);
  try {
    await Promise.all(runners);
  } catch (error) {
    deadline.abort(error);
    await Promise.allSettled(runners);
    throw error;
  }
  return results;
}
