/** A service on a port of its own, that answers as a test wants. */

import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import type { TestContext } from "node:test";

export interface Asked {
  readonly path: string;
  readonly headers: IncomingMessage["headers"];
  readonly body: { input: string[]; [more: string]: unknown };
}
/** Answers in place of the service; false: it should answer itself. */
export type Handler = (asked: Asked, response: ServerResponse, n: number) => unknown;

export interface Service {
  readonly url: string;
  readonly port: number;
  /** What it was asked, in order. */
  readonly asked: Asked[];
  /** Requests that it was answering at once, at most. */
  readonly busiest: () => number;
}

export const SPACE = "0123abcd-fp32";

/** The fake's vector of a text: a few floats, most with more digits than decimals show. */
export function vectorOf(text: string): Float32Array {
  const codes = [...text].map((one) => one.codePointAt(0) ?? 0);
  const sum = codes.reduce((total, code, i) => total + code * (i + 1), 0);
  return Float32Array.of(text.length, sum, 1 / (sum + 1), Math.sin(sum));
}

export function base64Of(vector: Float32Array): string {
  return Buffer.from(vector.buffer, vector.byteOffset, vector.byteLength).toString("base64");
}

export function reply(texts: readonly string[], as: (vector: Float32Array) => unknown = base64Of) {
  return {
    object: "list",
    data: texts.map((text, index) => ({ index, embedding: as(vectorOf(text)) })),
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

const PAGES: Record<string, unknown> = {
  "/health": { status: "ok", model: "fake", dim: 4, device: "cpu" },
  "/info": { model_id: "fake", dim: 4, device: "cpu", version: "1", space: SPACE },
  "/v1/models": { object: "list", data: [{ id: "fake" }, { id: "alias" }] },
};

/** Starts one, until the test's end. */
export async function service(t: TestContext, handler: Handler = () => false): Promise<Service> {
  const asked: Asked[] = [];
  let busy = 0;
  let busiest = 0;
  const server = createServer((request, response) => {
    busiest = Math.max(busiest, ++busy);
    response.on("close", () => busy--);
    const chunks: Buffer[] = [];
    request.on("data", (chunk: Buffer) => chunks.push(chunk));
    request.on("end", () => {
      const text = Buffer.concat(chunks).toString();
      const one = {
        path: request.url ?? "",
        headers: request.headers,
        body: text ? JSON.parse(text) : { input: [] },
      };
      const n = asked.push(one);
      if (handler(one, response, n) !== false) return;
      const page = PAGES[one.path];
      if (page) send(response, 200, page);
      else send(response, 200, reply(one.body.input), { "x-embedding-space": SPACE });
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  const { port } = server.address() as AddressInfo;
  return { url: `http://127.0.0.1:${port}`, port, asked, busiest: () => busiest };
}

/** A port that nobody listens on. */
export async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}
