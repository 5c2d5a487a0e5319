/** Compiled, never run: programs that use the interfaces of earlier systems. */

import {
  HelpEmbeddingService,
  MAX_RESTART_ATTEMPTS,
  NomicEmbedder,
  PythonSidecarClient,
  PythonSidecarError,
  PythonSidecarService,
  REQUEST_TIMEOUT_MS,
  RESTART_BACKOFF_MS,
} from "embedserve-client/compat";
import { LocalModel, Supervisor, StdioWorker } from "embedserve-client/node";
import { Client } from "embedserve-client";

const client = new PythonSidecarClient({
  baseUrl: "http://127.0.0.1",
  port: 8421,
  timeout: 30_000,
  retryAttempts: 2,
  retryDelay: 1000,
});
const isHealthy: boolean = await client.checkHealth();
const vectors: number[][] = await client.embedBatch(["a", "b"], true);
new PythonSidecarClient();
// @ts-expect-error: the client of the sidecar has other names
new PythonSidecarClient({ timeoutMs: 1 });

const service = new PythonSidecarService({
  pythonPath: "/usr/bin/python3",
  scriptPath: "embed_server.py",
  port: 8421,
  autoRestart: false,
});
await service.startSidecar();
await service.restartSidecar();
const { running, pid, port }: { running: boolean; pid: number | undefined; port: number } =
  await service.getStatus();
await service.stopSidecar();
// @ts-expect-error: there is no such option
new PythonSidecarService({ autorestart: false });

const nomic = new NomicEmbedder();
const batch: number[][] = await nomic.embed(["a", "b"]);
const single: number[] = await nomic.embedSingle("a");
const source: "service" | "local" = (await nomic.embed(["a"])).source;
const space: string | undefined = (await nomic.embedSingle("a")).space;
// @ts-expect-error: there is no such option
new NomicEmbedder({ model: "other" });

/** A provider of an application that injects its own subclass. */
class Embeddings extends HelpEmbeddingService {
  constructor() {
    super({ command: ["python", "embed.py", "server"] });
  }
}
const help: HelpEmbeddingService = new Embeddings();
await help.onModuleInit();
const query: number[] = await help.encodeQuery("a");
const documents: number[][] = await help.encodeBatch(["a"]);
await help.onModuleDestroy();
const constants: number[] = [REQUEST_TIMEOUT_MS, MAX_RESTART_ATTEMPTS, RESTART_BACKOFF_MS];
// @ts-expect-error: there is no such option
new HelpEmbeddingService({ scriptPath: "embed.py" });

export function describe(error: unknown): string {
  return error instanceof PythonSidecarError ? error.type : "";
}

/** NestJS' logger has `log` and no `info`. */
class NestLogger {
  log(message: unknown, ...more: unknown[]): void;
  log(message: unknown, context?: string): void;
  log(): void {}
  warn(message: unknown, ...more: unknown[]): void;
  warn(): void {}
  error(message: unknown, stack?: string, context?: string): void;
  error(): void {}
}
new Client({ logger: console, fallback: new LocalModel("package:model") });
new Supervisor({ logger: new NestLogger(), stopTimeoutMs: 1 });
new StdioWorker({ logger: console });
// @ts-expect-error: a logger has `warn`
new Client({ logger: { info() {}, error() {} } });
// @ts-expect-error: there is no such option
new Supervisor({ autoRestart: false });
// @ts-expect-error: there is no such option
new StdioWorker({ retries: 1 });
// @ts-expect-error: there is no such option
await new Client().health({ timeout: 1 });

export { batch, constants, documents, isHealthy, pid, port, query, running, single, source, space };
export { vectors };
