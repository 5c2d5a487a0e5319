/** Compiled without Node's types, never run: what a web page can use. */

import { Client } from "embedserve-client";

export const vectors: Float32Array[] = await new Client({
  baseUrl: location.origin,
  fetch: window.fetch,
}).embed(["a"]);
// @ts-expect-error: a browser has no `process`
process.exit();
