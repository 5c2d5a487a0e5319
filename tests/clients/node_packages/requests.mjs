// Sends requests with the packages `ollama` and `openai`, and prints the results as JSON.
import { Ollama } from "ollama";
import { AzureOpenAI } from "openai";

const { url, model, texts, longText } = JSON.parse(process.argv[2]);

const errorOf = (request) =>
  request.then(
    () => null,
    (error) => ({ status: error.status_code ?? error.status, code: error.code, message: error.message }),
  );

const ollama = new Ollama({ host: url });
const azure = new AzureOpenAI({
  endpoint: url,
  apiVersion: "2024-10-21",
  apiKey: "none",
  maxRetries: 0,
});
const vectors = (reply) => reply.data.map((item) => item.embedding);

const results = {
  ollama: {
    embed: await ollama.embed({ model, input: texts, keep_alive: "5m", options: { seed: 1 } }),
    reduced: await ollama.embed({ model, input: texts, dimensions: 16 }),
    embeddings: await ollama.embeddings({ model, prompt: texts[0] }),
    list: await ollama.list(),
    ps: await ollama.ps(),
    show: await ollama.show({ model: `${model}:latest` }),
    version: await ollama.version(),
    unknownModel: await errorOf(ollama.embed({ model: "gpt", input: "a" })),
    tooLong: await errorOf(ollama.embed({ model, input: longText, truncate: false })),
  },
  azure: {
    base64: vectors(await azure.embeddings.create({ model, input: texts })),
    float: vectors(await azure.embeddings.create({ model, input: texts, encoding_format: "float" })),
    reduced: vectors(await azure.embeddings.create({ model, input: texts, dimensions: 16 })),
    unknownModel: await errorOf(azure.embeddings.create({ model: "gpt", input: "a" })),
  },
};
console.log(JSON.stringify(results));
