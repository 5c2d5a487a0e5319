/** Requests to a service that this program restarts. */

import type { Supervisor } from "../node/supervisor.js";

/** The supervisors that are in use, by the URL of their service. */
const supervisors = new Map<string, Supervisor>();

export function addSupervisor(supervisor: Supervisor): void {
  supervisors.set(supervisor.url, supervisor);
}

/** Like `fetch`, after the restart of the service if it is in progress. */
export const fetchAfterRestart: typeof globalThis.fetch = async (input, init) => {
  const supervisor = supervisors.get(new URL(String(input)).origin);
  if (supervisor?.status().state === "restarting") {
    // If the restart fails, the request fails as well.
    await supervisor.start({ signal: init?.signal ?? undefined }).catch(() => {});
  }
  return globalThis.fetch(input, init);
};
