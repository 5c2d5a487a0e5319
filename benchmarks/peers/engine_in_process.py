"""EmbedServe's engine and scheduler in process, without Ray, HTTP and cache."""

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import cast

from serve_app.config import AppConfig, EmbedderSettings
from serve_app.errors import EmbedServeError
from serve_app.model_prep.engine_selection import load_engine, select_engines
from serve_app.scheduler.pending import PendingGroup
from serve_app.scheduler.scheduler import Scheduler
from serve_app.types import Float32, TextGroup, Vectors

from .base import OFFLINE_ENV, Peer
from .embedserve import available_cores
from .in_process import serve_requests

PEER = Peer(
    name="engine",
    title="EmbedServe's engine",
    command=lambda p: [p.python, "-m", __name__, p.precision or "auto"],
    env=OFFLINE_ENV,
)


class _ScheduledEngine:
    """An engine behind its scheduler. Must be created on the event loop that calls `embed`."""

    def __init__(self, precision: str) -> None:
        config = AppConfig.parse({"precision": precision})
        self._engine = load_engine(*select_engines(config), threads=available_cores())
        self._scheduler = Scheduler(
            EmbedderSettings(),
            streams=self._engine.streams,
            engine_threads=ThreadPoolExecutor(available_cores()),
            tokenizer_thread=ThreadPoolExecutor(1),
        )

    async def embed(self, texts: list[str]) -> Float32:
        self._scheduler.start()
        pending = PendingGroup(TextGroup(tuple(texts)), self._engine)
        await self._scheduler.submit([pending])
        vectors = await pending.future
        if isinstance(vectors, EmbedServeError):
            raise vectors
        return cast(Vectors, vectors).values


def main(precision: str) -> None:
    """Embeds with one engine on all cores."""
    with asyncio.Runner() as runner:
        engine = runner.run(_create_engine(precision))
        serve_requests(lambda texts: runner.run(engine.embed(texts)))


async def _create_engine(precision: str) -> _ScheduledEngine:
    return _ScheduledEngine(precision)


if __name__ == "__main__":
    main(sys.argv[1])
