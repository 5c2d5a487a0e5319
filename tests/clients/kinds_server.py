"""A standalone service with one tiny model of each kind, and what their library computes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import CrossEncoder, SentenceTransformer, SparseEncoder

from serve_app.config import AppConfig, EmbedServerSettings
from serve_app.model_prep.engine_selection import EngineSelection
from serve_app.models import resolve
from serve_app.standalone import StandaloneService
from serve_app.types import Float32
from tests.clients.app_server import run_server
from tests.tiny_models import BUILDERS

DENSE, RERANKER, CLASSIFIER = "tiny/dense", "tiny/cross-encoder", "tiny/classifier"
SPARSE, IMAGE = "tiny/sparse", "tiny/image"
KINDS = ("dense", "reranker", "classifier", "sparse", "multi-vector", "image")

QUERY = "Which animal sleeps all day?"
DOCUMENTS = [
    "The stock market fell.",
    "Cats sleep all day.",
    "Zürich liegt am See; 北京 does not.",
    "A dog chased the ball.",
    "Cats sleep all day.",  # equal documents have equal scores
]
#: The largest difference of scores that a batch of another size makes.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class KindsServer:
    """A running service and the folders of its models."""

    url: str
    folders: dict[str, Path]  #: by the model's name

    @cached_property
    def scores(self) -> Float32:
        """The library's scores of `DOCUMENTS` for `QUERY`, 0 to 1."""
        model = CrossEncoder(str(self.folders[RERANKER]), device="cpu")
        pairs = [(QUERY, document) for document in DOCUMENTS]
        return np.asarray(model.predict(pairs), dtype=np.float32)

    @property
    def ranking(self) -> list[int]:
        """The positions of `DOCUMENTS`, best first."""
        return [int(i) for i in np.argsort(-self.scores, kind="stable")]

    def class_scores(self, texts: Sequence[Any]) -> Float32:
        """Returns the library's probabilities of both labels, `bad` and `good`; shape (n, 2).

        Args:
            texts: texts, or pairs of texts.
        """
        model = CrossEncoder(str(self.folders[CLASSIFIER]), device="cpu")
        # It takes a list of strings for one pair, and has no batches of single texts.
        rows = [model.predict(text, apply_softmax=True) for text in texts]
        return np.asarray(rows, dtype=np.float32)

    def vectors(self, name: str, inputs: Sequence[Any]) -> Float32:
        """Returns the library's vectors of texts or images; shape (n, dim)."""
        model = SentenceTransformer(str(self.folders[name]), device="cpu")
        return np.asarray(model.encode(list(inputs)), dtype=np.float32)

    def sparse_vectors(self, texts: Sequence[str]) -> Float32:
        """Returns the library's sparse vectors as a dense array; shape (n, vocabulary)."""
        model = SparseEncoder(str(self.folders[SPARSE]), device="cpu")
        rows = model.encode(list(texts), convert_to_sparse_tensor=False)
        return np.asarray(rows, dtype=np.float32)


@contextmanager
def run_kinds_server(folder: Path, kinds: Sequence[str] = KINDS) -> Iterator[KindsServer]:
    """Serves a tiny model of each kind; the first is the default where the kind doesn't decide.

    Args:
        folder: for the models.
        kinds: names of `tiny_models.BUILDERS`.
    """
    models = [BUILDERS[kind](folder / kind) for kind in kinds]
    config = AppConfig.parse(
        {
            "models": [{"name": model.name, "source": str(model.source)} for model in models],
            "device": "cpu",
            "engine": "torch",
            "cache": {"url": "none"},
        }
    )
    # Without `select_engines`, which calibrates quantization for a minute.
    selections = [EngineSelection(model, resolve(model), "torch", "fp32") for model in models]
    service = StandaloneService(config, selections, EmbedServerSettings(), "client-tests")
    folders = {
        model.name: folder / kind / "model" for model, kind in zip(models, kinds, strict=True)
    }
    with run_server(service.app, service.start, service.stop) as url:
        yield KindsServer(url, folders)
