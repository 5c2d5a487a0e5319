/** Compiled, never run: the types in a CommonJS module. */

import client = require("embedserve-client");
import node = require("embedserve-client/node");

const first: client.Client = new client.Client({ concurrency: 2 });
const supervisor: node.Supervisor = new node.Supervisor();
// Both entry points export the same classes.
const error: client.EmbedError = new node.ServiceNotRunningError("message");
// @ts-expect-error: not exported for browsers
client.Supervisor;
export = { first, supervisor, error };
