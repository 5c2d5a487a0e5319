"""Ray Serve as its documentation shows it: `@serve.batch` around sentence-transformers."""

import json
from typing import Any

from ray import serve
from starlette.requests import Request

from .base import OFFLINE, Peer, Place
from serve_app.config import MINILM
from serve_app.models import model_dir


def _command(at: Place) -> list[str]:
    application = {"name": "docs", "route_prefix": "/", "import_path": f"{__name__}:app"}
    file = at.scratch / "docs.yaml"
    http = {"host": "127.0.0.1", "port": at.port}
    file.write_text(json.dumps({"http_options": http, "applications": [application]}))
    return [at.python, "-m", "ray.serve.scripts", "run", str(file)]


PEER = Peer(
    name="ray-serve",
    title="Ray Serve as documented",
    command=_command,
    env={**OFFLINE, "RAY_ADDRESS": "local", "RAY_USAGE_STATS_ENABLED": "0"},
)


@serve.deployment(max_ongoing_requests=64)
class Documented:
    """One replica, with room for two batches; else Ray's own defaults."""

    def __init__(self) -> None:
        from sentence_transformers import SentenceTransformer

        self._model = SentenceTransformer(str(model_dir(MINILM)), device="cpu")

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.005)
    async def encode(self, inputs: list[list[str]]) -> list[list[list[float]]]:
        """The vectors of each request's texts."""
        texts = [text for request in inputs for text in request]
        rest = iter(self._model.encode(texts).tolist())
        return [[next(rest) for _ in request] for request in inputs]

    async def __call__(self, request: Request) -> dict[str, Any]:
        """Answers one request."""
        asked = (await request.json())["input"]
        vectors = await self.encode([asked] if isinstance(asked, str) else asked)
        return {"data": [{"embedding": vector} for vector in vectors]}


app = Documented.bind()  # type: ignore[attr-defined]
