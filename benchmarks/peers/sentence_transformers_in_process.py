"""sentence-transformers in process, at float32: the reference for all vectors."""

import sys

import numpy as np

from serve_app.types import Float32

from .base import OFFLINE_ENV, Peer
from .in_process import serve_requests

PEER = Peer(
    name="sentence-transformers",
    title="sentence-transformers",
    command=lambda p: [p.python, "-m", __name__, str(p.model)],
    env=OFFLINE_ENV,
)


def main(model_folder: str) -> None:
    """Embeds with the defaults: batches of 32, sorted by length, a thread for each core."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(model_folder, device="cpu")

    def encode(texts: list[str]) -> Float32:
        return np.asarray(model.encode(texts), dtype=np.float32)

    serve_requests(encode)


if __name__ == "__main__":
    main(sys.argv[1])
