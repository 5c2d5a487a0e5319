"""A minimal FastAPI server around sentence-transformers."""

import sys
from typing import Any

from .base import OFFLINE_ENV, Peer

PEER = Peer(
    name="fastapi",
    title="FastAPI + sentence-transformers",
    command=lambda p: [p.python, "-m", __name__, str(p.port), str(p.model)],
    env=OFFLINE_ENV,
)


def main(port: int, model_folder: str) -> None:
    """Serves with one uvicorn worker; FastAPI runs the route in a thread pool."""
    import uvicorn
    from fastapi import Body, FastAPI
    from sentence_transformers import SentenceTransformer

    app = FastAPI()
    model = SentenceTransformer(model_folder, device="cpu")

    @app.post("/v1/embeddings")
    def embeddings(body: dict[str, Any] = Body()) -> dict[str, Any]:  # noqa: B008
        vectors = model.encode(body["input"])
        return {"data": [{"embedding": vector.tolist()} for vector in vectors]}

    uvicorn.run(app, port=port, log_level="warning")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
