"""The server of the peer mosec, for the interpreter of its own environment."""

import json
import os
from typing import Any

from mosec import Server, Worker
from sentence_transformers import SentenceTransformer


class Embedder(Worker):  # type: ignore[misc]  # mosec is not in this project's environment
    """Embeds the texts of up to 32 requests in one call."""

    def __init__(self) -> None:
        self._model = SentenceTransformer(os.environ["MODEL_FOLDER"], device="cpu")

    def deserialize(self, data: bytes) -> list[str]:
        """Returns the texts of a request in OpenAI's format."""
        texts = json.loads(data)["input"]
        return [texts] if isinstance(texts, str) else texts

    def forward(self, data: list[list[str]]) -> list[list[list[float]]]:
        """Returns the vectors of each request's texts."""
        vectors = iter(self._model.encode([text for texts in data for text in texts]).tolist())
        return [[next(vectors) for _ in texts] for texts in data]

    def serialize(self, data: list[list[float]]) -> bytes:
        """Returns a response in OpenAI's format."""
        items: list[dict[str, Any]] = [{"embedding": vector} for vector in data]
        return json.dumps({"data": items}).encode()


if __name__ == "__main__":
    server = Server()
    server.append_worker(Embedder, max_batch_size=32, max_wait_time=10, route="/v1/embeddings")
    server.run()
