/** The client, and the classes that start processes. Only for Node. */

export * from "../index.js";
export type { ProcessExit } from "./child.js";
export { LocalModel } from "./local-model.js";
export type { ProcessOptions } from "./managed-process.js";
export { StdioWorker } from "./stdio-worker.js";
export type {
  StdioWorkerOptions,
  WorkerState,
  WorkerStatus,
} from "./stdio-worker-options.js";
export { Supervisor } from "./supervisor.js";
export type {
  ServiceState,
  ServiceStatus,
  SupervisorEvents,
  SupervisorOptions,
} from "./supervisor-options.js";
