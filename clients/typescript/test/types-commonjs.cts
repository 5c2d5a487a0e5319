/** Compiled, never run: the types as CommonJS sees them. */

import client = require("embedserve-client");
import node = require("embedserve-client/node");

const one: client.EmbedClient = new client.EmbedClient({ concurrency: 2 });
const sidecar: node.EmbedSidecar = new node.EmbedSidecar();
// One class, however it is reached.
const error: client.EmbedError = new node.SidecarError("words");
// @ts-expect-error: no such export
client.EmbedSidecar;
export = { one, sidecar, error };
