"""Ray Serve as its documentation shows it: `@serve.batch` around sentence-transformers."""

import json
from typing import Any

from ray import serve
from starlette.requests import Request

from serve_app.config import MINILM
from serve_app.models import model_dir

from .base import OFFLINE_ENV, Peer, PeerProcess


def _command(process: PeerProcess) -> list[str]:
    application = {"name": "docs", "route_prefix": "/", "import_path": f"{__name__}:app"}
    file = process.scratch / "docs.yaml"
    http = {"host": "127.0.0.1", "port": process.port}
    file.write_text(json.dumps({"http_options": http, "applications": [application]}))
    return [process.python, "-m", "ray.serve.scripts", "run", str(file)]


PEER = Peer(
    name="ray-serve",
    title="Ray Serve as documented",
    command=_command,
    env={**OFFLINE_ENV, "RAY_ADDRESS": "local", "RAY_USAGE_STATS_ENABLED": "0"},
)


@serve.deployment(max_ongoing_requests=64)
class BatchedEmbedder:
    """One replica that admits two batches of requests; otherwise Ray's defaults."""

    def __init__(self) -> None:
        from sentence_transformers import SentenceTransformer

        self._model = SentenceTransformer(str(model_dir(MINILM)), device="cpu")

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.005)
    async def encode(self, inputs: list[list[str]]) -> list[list[list[float]]]:
        """Returns the vectors of each request's texts."""
        texts = [text for request in inputs for text in request]
        vectors = iter(self._model.encode(texts).tolist())
        return [[next(vectors) for _ in request] for request in inputs]

    async def __call__(self, request: Request) -> dict[str, Any]:
        """Handles an embeddings request in OpenAI's format."""
        texts = (await request.json())["input"]
        vectors = await self.encode([texts] if isinstance(texts, str) else texts)
        return {"data": [{"embedding": vector} for vector in vectors]}


app = BatchedEmbedder.bind()  # type: ignore[attr-defined]
