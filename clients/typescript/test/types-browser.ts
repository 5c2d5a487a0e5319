/** Compiled without Node's types, never run: what a page can use. */

import { EmbedClient } from "embedserve-client";

export const found: Float32Array[] = await new EmbedClient({
  baseUrl: location.origin,
  fetch: window.fetch,
}).embed(["a"]);
// @ts-expect-error: there is no Node here
process.exit();
