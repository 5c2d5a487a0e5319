"""sentence-transformers in process, at float32: what every engine is compared with."""

import sys

import numpy as np

from .base import OFFLINE, Peer
from .in_process import answer
from serve_app.types import Float32

PEER = Peer(
    name="sentence-transformers",
    title="sentence-transformers",
    command=lambda at: [at.python, "-m", __name__, str(at.model)],
    env=OFFLINE,
)


def main(model_folder: str) -> None:
    """Its defaults: batches of 32, sorted by length, as many threads as cores."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(model_folder, device="cpu")

    def encode(texts: list[str]) -> Float32:
        return np.asarray(model.encode(texts), dtype=np.float32)

    answer(encode)


if __name__ == "__main__":
    main(sys.argv[1])
