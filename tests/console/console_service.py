"""A standalone service for the console: a dense model with a price, and a reranker."""

import string
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

from serve_app.config import MINILM, AppConfig, EmbedServerSettings
from serve_app.model_prep.engine_selection import select_engines
from serve_app.models import model_dir
from serve_app.standalone import StandaloneService
from tests.clients.app_server import run_server

DENSE, RERANKER = "all-MiniLM-L6-v2", "minilm-maxsim"


def save_reranker(folder: Path) -> str:
    """Saves the default model as one that ranks by the similarity of tokens; returns its folder.

    A cross-encoder ranks better, but isn't to be had without a download.
    """
    modules = [
        Transformer(str(model_dir(MINILM))),
        MultiVectorMask(list(string.punctuation)),
        Normalize(module_input_name="token_embeddings"),
    ]
    MultiVectorEncoder(modules=modules, device="cpu").save_pretrained(str(folder / RERANKER))
    return str(folder / RERANKER)


@contextmanager
def run_service(models: list[dict[str, Any]], **settings: Any) -> Iterator[str]:
    """Serves models on a free port, whose URL it yields.

    Args:
        models: their settings.
        settings: those of the EmbedServer.
    """
    config = AppConfig.parse({"models": models, "cache": {"url": "none"}})
    service = StandaloneService(
        config, select_engines(config), EmbedServerSettings(**settings), "console"
    )
    with run_server(service.app, service.start, service.stop) as url:
        yield url


def real_models(folder: Path) -> list[dict[str, Any]]:
    """Returns the settings of the default model, with a price, and of the reranker."""
    dense = MINILM.model_dump(exclude_defaults=True, mode="json")
    return [
        dense | {"name": DENSE, "aliases": [], "usd_per_1k_tokens": "0.00002"},
        {"name": RERANKER, "source": f"path:{save_reranker(folder)}", "engine": "torch"},
    ]
