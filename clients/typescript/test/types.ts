/** Compiled, never run: what the types of the package allow, and what they don't. */

import {
  EmbedClient,
  type Embeddings,
  type ErrorCode,
  HttpError,
  OverloadedError,
  SpaceMismatchError,
} from "embedserve-client";
import * as node from "embedserve-client/node";

type Is<A> = <T>() => T extends A ? 1 : 2;
type Same<A, B> = Is<A> extends Is<B> ? true : false;
function is<T extends true>(): T | void {}

const client = new EmbedClient({ port: 1, timeout: 2, signal: undefined } as { port: number });
new EmbedClient({ apiKey: undefined });
// @ts-expect-error: a port is a number
new EmbedClient({ port: "8421" });
// @ts-expect-error: there is no such option
new EmbedClient({ retries: 3 });

const found: Embeddings = await client.embed(["a"] as const, { signal: AbortSignal.timeout(1) });
is<Same<(typeof found)[number], Float32Array>>();
is<Same<typeof found.truncated, readonly number[] | undefined>>();
const floats: Float32Array[] = found;
// @ts-expect-error: what is known of vectors doesn't change
found.space = "other";
// @ts-expect-error: a single text is no list
await client.embed("text");
// @ts-expect-error: normalize is a boolean
await client.embedBatch(["a"], { normalize: true });
is<Same<Awaited<ReturnType<typeof client.embedQuery>>, Float32Array>>();
const { status, dim }: { status: string; dim: number } = await client.checkHealth();
// @ts-expect-error: what isn't declared is unknown
const cache: string = (await client.info())["cache"];
// @ts-expect-error: internals aren't exported
import { Deadline } from "embedserve-client";
// @ts-expect-error: nor are they reached by a path
import * as core from "embedserve-client/dist/cjs/core.js";

export function told(error: unknown): ErrorCode | number | string | undefined {
  if (error instanceof OverloadedError) {
    is<Same<typeof error.code, "OVERLOADED">>();
    return error.retryAfterMs;
  }
  if (error instanceof HttpError) return error.status;
  if (error instanceof SpaceMismatchError) return error.expected;
  return error instanceof node.EmbedError ? error.code : undefined;
}

const sidecar = new node.EmbedSidecar({ command: ["a"], client: { apiKey: "k" } });
sidecar.on("ready", ({ managed }) => is<Same<typeof managed, boolean>>());
sidecar.once("crashed", ({ code }) => is<Same<typeof code, number | null>>());
// @ts-expect-error: there is no such event
sidecar.on("nonsense", () => {});
// @ts-expect-error: the sidecar's port is its own option
new node.EmbedSidecar({ client: { port: 1 } });
const state: node.SidecarState = (await sidecar.startSidecar({ timeout: 1 })).state;
const worker = new node.StdioWorker({ command: ["embedserve", "stdio"], requestTimeout: 1 });
is<Same<Awaited<ReturnType<typeof worker.encodeBatch>>, Float32Array[]>>();
// @ts-expect-error: one text isn't a batch
await worker.encodeBatch("text");

export { cache, core, Deadline, dim, floats, state, status };
