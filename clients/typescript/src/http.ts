/** One HTTP request, and everything that can go wrong with it. */

import type { Deadline } from "./deadline.js";
import { NetworkError, ParseError } from "./errors.js";
import { fields, type Reply, refusal } from "./wire.js";

/** Sends requests to one service. */
export class Http {
  readonly #url: string;
  readonly #apiKey: string | undefined;
  readonly #fetch: typeof globalThis.fetch | undefined;

  /** @throws {TypeError} the key can't be sent in a header. */
  constructor(url: string, apiKey?: string, fetch?: typeof globalThis.fetch) {
    // Here, since fetch would put the key in the words of its error.
    if (apiKey !== undefined && !/^[\x21-\x7e]+$/.test(apiKey)) {
      throw new TypeError("apiKey must be of visible ASCII characters.");
    }
    this.#url = url;
    this.#apiKey = apiKey;
    this.#fetch = fetch;
  }

  /**
   * The reply's JSON; `body` given: by POST.
   * @throws {NetworkError | HttpError | ParseError} and whatever ended the deadline.
   */
  async request(path: string, body: string | undefined, deadline: Deadline): Promise<Reply> {
    const [response, text] = await deadline.race((signal) => this.#exchange(path, body, signal));
    // A service may say what it was sent; also in a page that isn't JSON at all.
    const shown = this.#apiKey ? text.replaceAll(this.#apiKey, "***") : text;
    if (!response.ok) throw refusal(response.status, response.headers, shown);
    try {
      return { body: JSON.parse(text), headers: response.headers };
    } catch {
      // No cause: it would quote the text.
      throw new ParseError(`The reply isn't JSON: ${JSON.stringify(shown.slice(0, 80))}`);
    }
  }

  async #exchange(
    path: string,
    body: string | undefined,
    signal: AbortSignal,
  ): Promise<[Response, string]> {
    const headers: Record<string, string> = { accept: "application/json" };
    if (body !== undefined) headers["content-type"] = "application/json";
    if (this.#apiKey) headers["authorization"] = `Bearer ${this.#apiKey}`;
    // Not a method of this object: browsers' fetch refuses to be one.
    const send = this.#fetch ?? globalThis.fetch;
    try {
      const response = await send(this.#url + path, {
        method: body === undefined ? "GET" : "POST",
        headers,
        body: body ?? null,
        signal,
      });
      return [response, await response.text()];
    } catch (error) {
      const { message, code } = fields(fields(error)["cause"] ?? error);
      throw new NetworkError(`No answer from ${this.#url}: ${message || code || error}`, {
        cause: error,
      });
    }
  }
}
