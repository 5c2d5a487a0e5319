/** HTTP: one request, and the errors it can end with. */

import type { Deadline } from "./deadline.js";
import { NetworkError, ParseError } from "./errors.js";
import type { Log } from "./log.js";
import { acceptsStatus, type Request, type Response, statusError, asRecord } from "./wire.js";

type Fetch = typeof globalThis.fetch;

/** Sends requests to one service. */
export class Transport {
  readonly #url: string;
  readonly #apiKey: string | undefined;
  readonly #fetch: Fetch | undefined;
  readonly #log: Log;

  /** @throws {TypeError} the key can't be sent in a header. */
  constructor(url: string, apiKey: string | undefined, fetch: Fetch | undefined, log: Log) {
    // Checked here, because the error of `fetch` would contain the key.
    if (apiKey !== undefined && !/^[\x21-\x7e]+$/.test(apiKey)) {
      throw new TypeError("`apiKey` must consist of visible ASCII characters.");
    }
    this.#url = url;
    this.#apiKey = apiKey;
    this.#fetch = fetch;
    this.#log = log;
  }

  /**
   * Returns the JSON of a successful response, or of one whose status is in `request.accepts`.
   * @throws {NetworkError | HTTPError | ParseError} or the reason of the deadline.
   */
  async send(request: Request, deadline: Deadline): Promise<Response> {
    const sentAt = performance.now();
    const [response, text] = await deadline.race((signal) => this.#fetchText(request, signal));
    const ms = Math.round(performance.now() - sentAt);
    this.#log.debug(`${request.path}: status ${response.status} after ${ms} ms`);
    // An error page may quote the request headers.
    const redacted = this.#apiKey ? text.replaceAll(this.#apiKey, "***") : text;
    const { status, headers } = response;
    const toError = () => statusError(status, headers, redacted);
    if (!acceptsStatus(request, status)) throw toError();
    try {
      return { body: JSON.parse(text), headers };
    } catch {
      if (!response.ok) throw toError();
      // Without a cause, which would quote the text.
      throw new ParseError(`The response isn't JSON: ${JSON.stringify(redacted.slice(0, 80))}`);
    }
  }

  async #fetchText(
    request: Request,
    signal: AbortSignal,
  ): Promise<[globalThis.Response, string]> {
    const headers: Record<string, string> = { accept: "application/json", ...request.headers };
    if (this.#apiKey) headers["authorization"] = `Bearer ${this.#apiKey}`;
    // Browsers require that `fetch` isn't called as a method of another object.
    const fetch = this.#fetch ?? globalThis.fetch;
    try {
      const response = await fetch(this.#url + request.path, {
        method: request.body === undefined ? "GET" : "POST",
        headers,
        body: request.body ?? null,
        signal,
      });
      return [response, await response.text()];
    } catch (error) {
      const { message, code } = asRecord(asRecord(error)["cause"] ?? error);
      throw new NetworkError(`No response from ${this.#url}: ${message || code || error}`, {
        cause: error,
      });
    }
  }
}
