/** A fake service on a free port, with responses that the test chooses. */

import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import type { TestContext } from "node:test";

export interface ReceivedRequest {
  readonly path: string;
  readonly headers: IncomingMessage["headers"];
  readonly body: { input: string[]; [field: string]: unknown };
}
/** Responds to the n-th request; returns false for the default response. */
export type Handler = (request: ReceivedRequest, response: ServerResponse, n: number) => unknown;

export interface FakeService {
  readonly url: string;
  readonly port: number;
  /** The requests, in order. */
  readonly requests: ReceivedRequest[];
  /** Returns the maximum number of concurrent requests. */
  readonly maxInFlight: () => number;
}

export const SPACE = "0123abcd-fp32";

/** Returns the vector of a text: a few floats, most of which have no short decimal form. */
export function vectorOf(text: string): Float32Array {
  const codes = [...text].map((character) => character.codePointAt(0) ?? 0);
  const sum = codes.reduce((total, code, i) => total + code * (i + 1), 0);
  return Float32Array.of(text.length, sum, 1 / (sum + 1), Math.sin(sum));
}

export function encodeBase64(vector: Float32Array): string {
  return Buffer.from(vector.buffer, vector.byteOffset, vector.byteLength).toString("base64");
}

export function embedReply(
  texts: readonly string[],
  encode: (vector: Float32Array) => unknown = encodeBase64,
) {
  return {
    object: "list",
    data: texts.map((text, index) => ({ index, embedding: encode(vectorOf(text)) })),
    model: "fake",
    usage: { prompt_tokens: texts.length * 2, total_tokens: texts.length * 2 },
  };
}

export function send(
  response: ServerResponse,
  status: number,
  body: unknown,
  headers: Record<string, string> = {},
): void {
  response.writeHead(status, { "content-type": "application/json", ...headers });
  response.end(typeof body === "string" ? body : JSON.stringify(body));
}

const DEFAULT_REPLIES: Record<string, unknown> = {
  "/health": { status: "ok", model: "fake", dim: 4, device: "cpu" },
  "/info": { model_id: "fake", dim: 4, device: "cpu", version: "1", space: SPACE },
  "/v1/models": { object: "list", data: [{ id: "fake" }, { id: "alias" }] },
};

/** Starts a fake service; it stops at the end of the test. */
export async function startService(
  t: TestContext,
  handler: Handler = () => false,
  listenPort = 0,
): Promise<FakeService> {
  const requests: ReceivedRequest[] = [];
  let inFlight = 0;
  let maxInFlight = 0;
  const server = createServer((incoming, response) => {
    maxInFlight = Math.max(maxInFlight, ++inFlight);
    response.on("close", () => inFlight--);
    const chunks: Buffer[] = [];
    incoming.on("data", (chunk: Buffer) => chunks.push(chunk));
    incoming.on("end", () => {
      const text = Buffer.concat(chunks).toString();
      const request = {
        path: incoming.url ?? "",
        headers: incoming.headers,
        body: text ? JSON.parse(text) : { input: [] },
      };
      const n = requests.push(request);
      if (handler(request, response, n) !== false) return;
      const reply = DEFAULT_REPLIES[request.path.replace(/\?.*/, "")];
      if (reply) send(response, 200, reply);
      else send(response, 200, embedReply(request.body.input), { "x-embedding-space": SPACE });
    });
  });
  await new Promise<void>((resolve) => server.listen(listenPort, "127.0.0.1", resolve));
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  const { port } = server.address() as AddressInfo;
  return { url: `http://127.0.0.1:${port}`, port, requests, maxInFlight: () => maxInFlight };
}

/** Returns a port that no process listens on. */
export async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}
