/** Many pieces of work, a few at a time. */

import type { Deadline } from "./deadline.js";

/**
 * Results in the order of `items`, of which at most `concurrency` are worked on at once. The first
 * error ends the deadline, and with it everything that is still under way.
 */
export async function gather<T, R>(
  items: readonly T[],
  concurrency: number,
  deadline: Deadline,
  work: (item: T) => Promise<R>,
): Promise<R[]> {
  const results = new Array<R>(items.length);
  // All lanes take from one iterator, so that each item is taken once.
  const rest = items.entries();
  const lane = async () => {
    for (const [i, item] of rest) results[i] = await work(item);
  };
  const lanes = Array.from({ length: Math.min(concurrency, items.length) }, lane);
  try {
    await Promise.all(lanes);
  } catch (error) {
    deadline.end(error);
    await Promise.allSettled(lanes);
    throw error;
  }
  return results;
}
