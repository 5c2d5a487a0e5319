/** Compiled, never run: what the types of the package accept and reject. */

import {
  Client,
  type ErrorCode,
  HTTPError,
  type LabelScore,
  RateLimitError,
  type RerankResult,
  SpaceMismatchError,
  type SparseVector,
  type Vectors,
} from "embedserve-client";
import * as node from "embedserve-client/node";

type Identity<A> = <T>() => T extends A ? 1 : 2;
type IsSame<A, B> = Identity<A> extends Identity<B> ? true : false;
function assertType<T extends true>(): T | void {}

const client = new Client({ baseUrl: "http://host", timeoutMs: 2, model: undefined });
new Client({ apiKey: undefined });
// @ts-expect-error: a timeout is a number
new Client({ timeoutMs: "60" });
// @ts-expect-error: there is no such option
new Client({ retries: 3 });

const vectors: Vectors = await client.embed(["a"] as const, { signal: AbortSignal.timeout(1) });
assertType<IsSame<(typeof vectors)[number], Float32Array>>();
assertType<IsSame<typeof vectors.info.truncated, readonly number[] | undefined>>();
assertType<IsSame<typeof vectors.info.cached, number | undefined>>();
assertType<IsSame<typeof vectors.info.costUsd, number | undefined>>();
const rows: Float32Array[] = vectors;
// @ts-expect-error: the metadata is read-only
vectors.space = "other";
assertType<IsSame<Awaited<ReturnType<typeof client.embedQuery>>, Float32Array>>();
const single: Float32Array = await client.embed("text", { truncation: "chunk", lane: "bulk" });
// @ts-expect-error: normalize is a boolean
await client.embed(["a"], { normalize: "yes" });
const [best]: RerankResult[] = await client.rerank("q", ["a"] as const, { topN: 1, model: "m" });
assertType<IsSame<typeof best, RerankResult | undefined>>();
const [label]: LabelScore[] = await client.classify("text", { model: "m" });
assertType<IsSame<typeof label, LabelScore | undefined>>();
const labels = await client.classify(["a"] as const);
assertType<IsSame<typeof labels, LabelScore[][]>>();
// @ts-expect-error: labels have no number
await client.classify(["a"], { topN: 1 });
const { indices }: SparseVector = await client.embedSparse("text");
assertType<IsSame<typeof indices, Uint32Array>>();
const image = await client.embedImages(Buffer.from("GIF8"));
assertType<IsSame<typeof image, Float32Array>>();
const images = await client.embedImages(["data:image/png;base64,"]);
assertType<IsSame<typeof images, Vectors>>();
// @ts-expect-error: images have no input type
await client.embedImages("data:image/png;base64,", { inputType: "query" });
// @ts-expect-error: there is no such lane
await client.embed(["a"], { lane: "fast" });
const { status, dim }: { status: string; dim: number } = await client.health();
// @ts-expect-error: a field that isn't declared is unknown
const cache: string = (await client.info())["cache"];
// @ts-expect-error: internals aren't exported
import { Deadline } from "embedserve-client";
// @ts-expect-error: paths below the package aren't exported either
import * as deadline from "embedserve-client/dist/deadline.js";

export function detail(error: unknown): ErrorCode | number | string | undefined {
  if (error instanceof RateLimitError) {
    assertType<IsSame<typeof error.code, "RATE_LIMITED">>();
    return error.retryAfterMs;
  }
  if (error instanceof HTTPError) return error.status;
  if (error instanceof SpaceMismatchError) return error.expected;
  return error instanceof node.EmbedError ? error.code : undefined;
}

const supervisor = new node.Supervisor({ command: ["a"], client: { apiKey: "k" } });
supervisor.on("ready", ({ managed }) => assertType<IsSame<typeof managed, boolean>>());
supervisor.once("crashed", ({ code }) => assertType<IsSame<typeof code, number | null>>());
// @ts-expect-error: there is no such event
supervisor.on("nonsense", () => {});
// @ts-expect-error: the supervisor sets the URL
new node.Supervisor({ client: { baseUrl: "http://host" } });
const state: node.ServiceState = (await supervisor.start({ timeoutMs: 1 })).state;
const worker = new node.StdioWorker({ command: ["embedserve", "stdio"], timeoutMs: 1 });
assertType<IsSame<Awaited<ReturnType<typeof worker.encodeBatch>>, Float32Array[]>>();
// @ts-expect-error: a string isn't a batch
await worker.encodeBatch("text");

export { cache, Deadline, deadline, dim, rows, single, state, status };
