/** Processes that a worker thread starts: another process than this one is their parent. */

import assert from "node:assert/strict";
import { once } from "node:events";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { Worker } from "node:worker_threads";
import { freePort } from "./service.js";

const FAKES = fileURLToPath(new URL("../../test/fakes/", import.meta.url));

test("a worker thread starts, restarts and stops processes", async () => {
  const thread = new Worker(join(FAKES, "thread.mjs"), {
    workerData: {
      service: join(FAKES, "service.mjs"),
      worker: join(FAKES, "worker.mjs"),
      port: await freePort(),
    },
  });
  const posted = new Map<string, unknown>();
  thread.on("message", ([name, value]: [string, unknown]) => posted.set(name, value));
  assert.deepEqual(await once(thread, "exit"), [0]);
  assert.match(String(posted.get("absent")), /can't be started: .*\/no\/such\/program/);
  posted.delete("absent");
  assert.deepEqual(Object.fromEntries(posted), {
    service: [3, true],
    crashed: { code: 1, signal: null },
    killed: { code: null, signal: "SIGKILL" },
    stopped: undefined,
    worker: [2, 1],
    stubborn: "stopped",
  });
});
