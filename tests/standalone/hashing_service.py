"""A standalone service with a hashing engine, over real sockets and without a model."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from serve_app.config import AppConfig, EmbedServerSettings
from serve_app.model_prep.engine_selection import select_engines
from serve_app.standalone import StandaloneService
from tests.clients.app_server import run_server

MODEL = "words"


def hashing_service(**settings: Any) -> StandaloneService:
    """Returns a service that isn't started; `settings` are those of the EmbedServer."""
    models = [{"name": MODEL, "source": "hashing:64"}]
    config = AppConfig.parse({"models": models, "cache": {"url": "none"}})
    return StandaloneService(
        config, select_engines(config), EmbedServerSettings(**settings), "hashing"
    )


@contextmanager
def run_hashing_service(port: int = 0) -> Iterator[str]:
    """Serves on a port, a free one for 0; yields the URL."""
    service = hashing_service()
    with run_server(service.app, service.start, service.stop, port) as url:
        try:
            yield url
        finally:
            service.end_streams()
