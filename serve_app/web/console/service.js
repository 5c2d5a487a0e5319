import { apiKey } from "./api_key.js";

/** The root of the service, also behind a proxy that serves it under a prefix. */
export const ROOT = new URL("../", import.meta.url);

/** The service refused a request, or didn't respond; `status` is then 0. */
export class ServiceError extends Error {
  constructor(message, status, retryAfterS = null) {
    super(message);
    this.status = status;
    this.retryAfterS = retryAfterS;
  }

  get needsKey() {
    return this.status === 401 || this.status === 403;
  }
}

/**
 * Sends a request with the API key.
 *
 * Throws a ServiceError unless the status is 2xx, and an AbortError if `signal` aborts it.
 */
export async function send(path, { body, headers = {}, signal } = {}) {
  const options = { headers: { ...headers }, signal, credentials: "omit", cache: "no-store" };
  if (apiKey.value) options.headers.authorization = `Bearer ${apiKey.value}`;
  if (body !== undefined) {
    options.method = "POST";
    options.body = JSON.stringify(body);
    options.headers["content-type"] = "application/json";
  }
  let response;
  try {
    response = await fetch(new URL(path, ROOT), options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServiceError("The service doesn’t respond. Is it running?", 0);
  }
  if (!response.ok) throw await readError(response);
  return response;
}

/** Sends a request and reads the reply as JSON: `{ body, headers, elapsedMs }`. */
export async function call(path, options) {
  const start = performance.now();
  const response = await send(path, options);
  const body = await response.json();
  return { body, headers: response.headers, elapsedMs: performance.now() - start };
}

async function readError(response) {
  const text = await response.text().catch(() => "");
  const retryAfter = Number(response.headers.get("retry-after"));
  return new ServiceError(
    messageOf(text) ?? `The service responded with the status ${response.status}.`,
    response.status,
    retryAfter > 0 ? retryAfter : null,
  );
}

/** Returns the message of an error in any format of the service, or null. */
function messageOf(text) {
  try {
    const { error, message } = JSON.parse(text);
    return error?.message ?? (typeof error === "string" ? error : (message ?? null));
  } catch {
    return null;
  }
}
