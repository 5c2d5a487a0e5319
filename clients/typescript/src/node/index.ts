/** What starts processes, beside all that the client for browsers has. */

export * from "../index.js";
export type { Exit, ProcessOptions } from "./child.js";
export { EmbedSidecar } from "./sidecar.js";
export type {
  SidecarEvents,
  SidecarOptions,
  SidecarState,
  SidecarStatus,
} from "./sidecar-options.js";
export { StdioWorker } from "./stdio.js";
export type { WorkerOptions, WorkerState, WorkerStatus } from "./stdio-options.js";
