/** Notices a service that runs but answers no requests. */

import { get } from "node:http";

/** Milliseconds between two checks. */
const CHECK_PERIOD_MS = 1000;
/** The timeout of a check in milliseconds. */
const CHECK_TIMEOUT_MS = 5000;

/**
 * Checks a ready service until it has not answered for `timeoutMs` milliseconds, then calls
 * `onUnresponsive`. The checks don't keep the event loop alive.
 * @returns a function that ends the checks
 */
export function watchHealth(
  url: string,
  timeoutMs: number,
  onUnresponsive: () => void,
): () => void {
  let isEnded = false;
  let unansweredSince: number | undefined;
  const check = async () => {
    const sentAt = performance.now();
    unansweredSince = (await answers(url)) ? undefined : (unansweredSince ?? sentAt);
    if (isEnded) return;
    if (performance.now() - (unansweredSince ?? Infinity) >= timeoutMs) return onUnresponsive();
    timer = setTimeout(check, CHECK_PERIOD_MS).unref();
  };
  let timer = setTimeout(check, CHECK_PERIOD_MS).unref();
  return () => {
    isEnded = true;
    clearTimeout(timer);
  };
}

/** An error response is an answer. The connection is new, since open ones outlive a closed port. */
function answers(url: string): Promise<boolean> {
  return new Promise((resolve) => {
    const request = get(`${url}/health`, { agent: false, timeout: CHECK_TIMEOUT_MS });
    request.on("response", (response) => {
      response.resume();
      resolve(true);
    });
    request.on("timeout", () => request.destroy()).on("error", () => resolve(false));
    request.on("socket", (socket) => socket.unref());
  });
}
