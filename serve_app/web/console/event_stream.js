import { wait } from "./bulk_call.js";
import { send } from "./service.js";

const MAX_WAIT_S = 10;

/**
 * Calls `onMessage` with the JSON of each server-sent event, until `signal` aborts.
 *
 * EventSource can't send an API key, so the stream is read from a fetch. A lost connection is
 * opened again; `onState` is called with an error while there is none, and with null when there is
 * one. Resolves if the service refuses the request, which another one wouldn't change.
 */
export async function readEvents(path, signal, onMessage, onState) {
  let waitS = 1;
  while (!signal.aborted) {
    try {
      const response = await send(path, { signal, headers: { accept: "text/event-stream" } });
      onState(null);
      waitS = 1;
      await readMessages(response.body, onMessage);
      onState(new Error("The service has closed the stream. Connecting again…"));
    } catch (error) {
      if (signal.aborted) return;
      onState(error);
      const isRefused = error.status >= 400 && error.status < 500 && error.status !== 429;
      if (isRefused) return;
      waitS = Math.max(waitS, Math.min(error.retryAfterS ?? 0, MAX_WAIT_S));
    }
    try {
      await wait(waitS, signal);
    } catch {
      return;
    }
    waitS = Math.min(2 * waitS, MAX_WAIT_S);
  }
}

async function readMessages(body, onMessage) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const events = (buffer + value).split(/\r?\n\r?\n/);
    buffer = events.pop();
    for (const event of events) {
      const data = event
        .split(/\r?\n/)
        .filter((line) => line.startsWith("data:"))
        .map((line) => line.slice(5).trimStart());
      if (data.length) onMessage(JSON.parse(data.join("\n")));
    }
  }
}
