"""A standalone service with a hashing engine, over real sockets and without a model."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from serve_app.config import AppConfig, EmbedServerSettings
from serve_app.model_prep.engine_selection import select_engines
from serve_app.standalone import StandaloneService
from tests.clients.app_server import run_server

MODEL = "words"


@contextmanager
def run_hashing_service(port: int = 0, **settings: Any) -> Iterator[str]:
    """Serves on a port, a free one for 0; yields the URL.

    Args:
        port: to listen on.
        settings: those of the EmbedServer.
    """
    models = [{"name": MODEL, "source": "hashing:64"}]
    config = AppConfig.parse({"models": models, "cache": {"url": "none"}})
    service = StandaloneService(
        config, select_engines(config), EmbedServerSettings(**settings), "hashing"
    )

    with run_server(service.app, service.start, service.stop, port) as url:
        try:
            yield url
        finally:
            service.end_streams()
