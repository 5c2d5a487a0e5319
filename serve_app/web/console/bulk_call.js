import { call } from "./service.js";
import { decodeVector } from "./vector.js";

const TEXTS_PER_CALL = 64;
const MAX_CALLS = 2;
const MAX_RETRIES = 5;
const MAX_WAIT_S = 30;

/** Returns the request for a part of the texts: it waits behind interactive ones. */
export function bulkRequest(fields, texts) {
  return {
    body: { ...fields, input: texts, encoding_format: "base64" },
    headers: { "x-priority": "bulk" },
  };
}

/**
 * Returns the vector of each text, from calls of 64 texts, two at a time.
 *
 * A call that the service has no room for is repeated when the service says so. `onProgress` is
 * called with the number of texts that have vectors.
 */
export async function embedAll(texts, fields, signal, onProgress) {
  const vectors = new Array(texts.length);
  let next = 0;
  let done = 0;
  const work = async () => {
    while (next < texts.length) {
      const start = next;
      const part = texts.slice(start, (next += TEXTS_PER_CALL));
      const { body } = await callPatiently({ ...bulkRequest(fields, part), signal });
      for (const item of body.data) vectors[start + item.index] = decodeVector(item.embedding);
      onProgress((done += part.length));
    }
  };
  await Promise.all(Array.from({ length: MAX_CALLS }, work));
  return vectors;
}

async function callPatiently(request) {
  for (let retry = 0; ; retry++) {
    try {
      return await call("v1/embeddings", request);
    } catch (error) {
      const isBusy = error.status === 429 || error.status === 503;
      if (!isBusy || retry === MAX_RETRIES) throw error;
      await wait(Math.min(error.retryAfterS ?? 2 ** retry, MAX_WAIT_S), request.signal);
    }
  }
}

/** Waits; rejects with an AbortError if `signal` aborts. */
export function wait(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal.addEventListener(
      "abort",
      () => {
        clearTimeout(timer);
        reject(signal.reason);
      },
      { once: true },
    );
  });
}
