/** The interfaces of earlier systems, over the classes of this package. Vectors are `number[]`. */

export {
  HelpEmbeddingService,
  MAX_RESTART_ATTEMPTS,
  REQUEST_TIMEOUT_MS,
  RESTART_BACKOFF_MS,
} from "./help-embedding-service.js";
export {
  type EmbeddedText,
  type EmbeddedTexts,
  NomicEmbedder,
  type NomicEmbedderOptions,
} from "./nomic-embedder.js";
export {
  PythonSidecarClient,
  type PythonSidecarClientOptions,
  PythonSidecarError,
} from "./python-sidecar-client.js";
export {
  PythonSidecarService,
  type PythonSidecarServiceOptions,
  type SidecarStatus,
} from "./python-sidecar-service.js";
