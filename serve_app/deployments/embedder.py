"""The deployment of models: groups of texts → tokenizer → scheduler → engine → outputs.

Each replica runs the engines of the deployment's models, on CPUs or a GPU of its own.
"""

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from ray import serve
from ray.serve.schema import ReplicaRank

from serve_app.config import AppConfig, EmbedderSettings
from serve_app.deployments.pool_replica import PoolReplica
from serve_app.deployments.replica_engine import ReplicaCpus, load_replica_engines
from serve_app.deployments.replica_log import log_to_serve
from serve_app.deployments.rollout_order import wait_for_callers
from serve_app.deployments.token_router import SPEED
from serve_app.engines.base import Engine
from serve_app.meter import Meter, export
from serve_app.model_prep.engine_selection import EngineSelection, load_engine
from serve_app.scheduler.pending import PendingGroup
from serve_app.tracing import open_tracer

#: Upper bound of calls that share one run of the tokenizer.
_MAX_COLLECTED_CALLS = 256
#: Calls with more characters are tokenized by themselves, so that others don't wait for them.
_MAX_COLLECTED_CHARS = 16384


class Embedder(PoolReplica):
    """Computes the outputs of the models that name this deployment. Doesn't cache."""

    def __init__(
        self,
        config: AppConfig,
        selections: Sequence[EngineSelection],
        *,
        load: Callable[..., Engine] = load_engine,
    ) -> None:
        """Loads the engines; see `load_replica_engines`."""
        log_to_serve()
        self._meter = Meter()
        deployment = selections[0].model.deployment
        self._cpus = ReplicaCpus(config, deployment)
        self._pool = load_replica_engines(config, selections, self._cpus, self._meter, load=load)
        super().__init__(
            self._pool, self._meter, open_tracer(config.tracing, self._meter, deployment)
        )
        self._queue = self._pool.submit
        self._pool.submit = self._submit
        self._export_task: asyncio.Task[None] | None = None

    async def reconfigure(self, user_config: dict[str, Any] | None, rank: ReplicaRank) -> None:
        """Applies settings, and moves the threads to other CPUs if the local rank has changed.

        Ray calls it before the first request, after each change of the settings, and when it
        reassigns ranks.
        """
        settings = EmbedderSettings.parse(user_config)
        if self._export_task is None:
            await wait_for_callers(("Ingress", "CacheLookup"))
        self._start()
        self._pool.apply(settings, self._cpus.of_rank(rank.local_rank))

    def _start(self) -> None:
        """Starts the background tasks on the first call."""
        if self._export_task is None:
            self._pool.start()
            self._export_task = asyncio.create_task(export(self._meter, self._pool.gauges))

    async def _submit(self, groups: Sequence[PendingGroup]) -> None:
        characters = sum(len(text) for group in groups for text in group.inputs)
        if characters > _MAX_COLLECTED_CHARS:
            await self._queue(groups)
        else:
            await self._submit_collected(groups)

    @serve.batch(
        max_batch_size=_MAX_COLLECTED_CALLS, batch_wait_timeout_s=0, max_concurrent_batches=64
    )
    async def _submit_collected(self, calls: list[Sequence[PendingGroup]]) -> list[None]:
        # Simultaneous calls share one run of the tokenizer. This returns once their groups are
        # queued, so that a short request never waits for the outputs of a long one.
        await self._queue(list(chain.from_iterable(calls)))
        return [None] * len(calls)

    async def check_health(self) -> None:
        """Raises if an engine stalls; Ray then replaces the replica."""
        self._pool.check_health()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Returns the metrics that `autoscale.TokenPolicy` scales by."""
        return dataclasses.asdict(self._pool.sample_load())

    async def record_routing_stats(self) -> dict[str, float]:
        """Returns what `TokenRouter` knows of this replica."""
        return {SPEED: self._pool.capacity_tokens_per_s()}

    async def __del__(self) -> None:
        """Stops the workers; Ray awaits it when the replica stops."""
        await self._pool.stop()
        await self._close_tracer()
