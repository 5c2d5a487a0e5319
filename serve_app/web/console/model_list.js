import { apiKey } from "./api_key.js";
import { call } from "./service.js";

let reading = null;
apiKey.addEventListener("change", () => (reading = null));

/** Returns the served models, in the order of the configuration: `{ name, tasks, dim, … }`. */
export function models() {
  reading ??= read().catch((error) => {
    reading = null; // the next call asks again
    throw error;
  });
  return reading;
}

async function read() {
  const { body } = await call("info");
  return (body.models ?? [body]).map((model) => ({
    name: model.name ?? model.model,
    tasks: model.tasks,
    dim: model.dim,
    maxTokens: model.max_tokens,
  }));
}

/** Returns all that `/info` says of a model. */
export async function describe(name) {
  const { body } = await call(`info?model=${encodeURIComponent(name)}`);
  return body;
}
