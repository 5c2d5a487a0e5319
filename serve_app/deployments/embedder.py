"""The model deployment: groups of texts → tokenizer → scheduler → engine → vectors.

Each replica runs one engine on CPUs or a GPU of its own.
"""

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from ray import serve
from ray.serve.schema import ReplicaRank

from serve_app.config import EmbedderSettings
from serve_app.deployments.group_call import GroupResult, collect
from serve_app.deployments.replica_engine import ReplicaCpus, load_replica_engine
from serve_app.deployments.replica_log import log_to_serve
from serve_app.deployments.retrying_call import returns_errors
from serve_app.engines.base import Engine
from serve_app.metrics import Meter, export
from serve_app.model_prep.engine_selection import EngineSelection, load_engine
from serve_app.scheduler.pending import PendingGroup
from serve_app.types import EngineInfo, TextGroup, Tokenization, TokenVectors

#: Upper bound of calls that share one run of the tokenizer.
_MAX_COLLECTED_CALLS = 256
#: Calls with more characters are tokenized by themselves, so that others don't wait for them.
_MAX_COLLECTED_CHARS = 16384


class Embedder:
    """Computes vectors with one engine. Doesn't cache."""

    def __init__(
        self, selection: EngineSelection, *, load: Callable[..., Engine] = load_engine
    ) -> None:
        """Loads the engine; see `load_replica_engine`."""
        log_to_serve()
        self._meter = Meter()
        self._space = selection.cached_spec.space_id
        self._cpus = ReplicaCpus()
        self._engine = load_replica_engine(selection, self._cpus, self._meter, load=load)
        self._queue = self._engine.submit
        self._engine.submit = self._submit
        self._export_task: asyncio.Task[None] | None = None

    async def reconfigure(self, user_config: dict[str, Any] | None, rank: ReplicaRank) -> None:
        """Applies settings, and moves the threads to other CPUs if the local rank has changed.

        Ray calls it before the first request, after each change of the settings, and when it
        reassigns ranks.
        """
        settings = EmbedderSettings.parse(user_config)
        self._start()
        self._engine.apply(settings, self._cpus.of_rank(rank.local_rank))

    def _start(self) -> None:
        """Starts the background tasks on the first call."""
        if self._export_task is None:
            self._engine.start()
            self._export_task = asyncio.create_task(export(self._meter, self._engine.gauges))

    async def embed(self, space: str, groups: tuple[TextGroup, ...]) -> list[GroupResult] | None:
        """Returns for each group its vectors, or an error as a value; None in another space."""
        if space != self._space:
            return None
        return await collect(self._engine.embed, groups)

    async def _submit(self, groups: Sequence[PendingGroup[Any]]) -> None:
        characters = sum(len(text) for group in groups for text in group.inputs)
        if characters > _MAX_COLLECTED_CHARS:
            await self._queue(groups)
        else:
            await self._submit_collected(groups)

    @serve.batch(
        max_batch_size=_MAX_COLLECTED_CALLS, batch_wait_timeout_s=0, max_concurrent_batches=64
    )
    async def _submit_collected(self, calls: list[Sequence[PendingGroup[Any]]]) -> list[None]:
        # Simultaneous calls share one run of the tokenizer. This returns once their groups are
        # queued, so that a short request never waits for the vectors of a long one.
        await self._queue(list(chain.from_iterable(calls)))
        return [None] * len(calls)

    @returns_errors
    async def embed_tokens(self, space: str, group: TextGroup) -> list[TokenVectors] | None:
        """Returns for each text the vectors of its tokens, or one error as a value.

        Returns None in another space.
        """
        if space != self._space:
            return None
        return await self._engine.embed_tokens(group)

    @returns_errors
    async def tokenize(
        self, texts: tuple[str, ...], add_special_tokens: bool
    ) -> list[Tokenization]:
        """Returns the tokens of each text, not truncated, or an error as a value."""
        return await self._engine.tokenize(texts, add_special_tokens)

    @returns_errors
    async def decode(
        self, rows: tuple[tuple[int, ...], ...], skip_special_tokens: bool
    ) -> list[str]:
        """Returns the text of each row of token ids, or an error as a value."""
        return await self._engine.decode(rows, skip_special_tokens)

    async def describe(self) -> EngineInfo:
        """Returns the engine, its device and its precision."""
        return await self._engine.describe()

    async def check_health(self) -> None:
        """Raises if the engine stalls; Ray then replaces the replica."""
        self._engine.check_health()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Returns the metrics that `autoscale.TokenPolicy` scales by."""
        return dataclasses.asdict(self._engine.sample_load())
