"""The cache deployment: groups of texts → in-flight requests → L2 → Embedder → outputs."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ReplicaRank

from serve_app.cache.coalescer import Deliver
from serve_app.cache.l2 import open_l2_cache
from serve_app.cache.lookup import Lookup
from serve_app.cache.report import CacheReport
from serve_app.cache.stack import CacheStack
from serve_app.config import AppConfig, CacheLookupSettings
from serve_app.deployments.call_limit import CallLimit
from serve_app.deployments.deliveries import GroupResult, Part, collect, deliveries
from serve_app.deployments.deployment_queues import DEPLOYMENT_QUEUES
from serve_app.deployments.group_call import group_call
from serve_app.deployments.group_stream import GroupStream
from serve_app.deployments.replica_counter import ReplicaCounter
from serve_app.deployments.replica_log import log_to_serve
from serve_app.deployments.retrying_call import RetryingCall, returns_errors
from serve_app.deployments.rollout_order import wait_for_callers
from serve_app.deployments.service_identity import current_replica, current_service
from serve_app.deployments.wake_up import WakeUp
from serve_app.errors import EmbedServeError
from serve_app.live.replica_sample import ReplicaSample
from serve_app.live.replica_sampler import ReplicaSampler
from serve_app.meter import Meter, export
from serve_app.model_prep.engine_selection import EngineSelection
from serve_app.service.engine_chains import EngineChains
from serve_app.tracing import open_tracer
from serve_app.types import CacheState, TextGroup


class CacheLookup:
    """Serves outputs of all models from the cache, and computes misses through the Embedders."""

    def __init__(
        self,
        config: AppConfig,
        selections: Sequence[EngineSelection],
        embedders: Mapping[str, DeploymentHandle[Any]],
        *,
        cache_server: DeploymentHandle[Any] | None = None,
    ) -> None:
        """Opens the cache.

        Args:
            config: the application's configuration.
            selections: the models.
            embedders: the deployments that run the models, by name.
            cache_server: the deployment CacheServer, if the cache server is embedded.
        """
        log_to_serve()
        settings = CacheLookupSettings()
        self._meter = Meter()
        counters = {name: ReplicaCounter(name) for name in embedders}
        wake_ups = {
            name: WakeUp(name, counter, timeout_s=config.wake_up_timeout_s)
            for name, counter in counters.items()
        }
        calls = {
            name: group_call(GroupStream(h, wake_up=wake_ups[name]), name)
            for name, h in embedders.items()
        }
        deployments = {s.cached_spec.engine_id: s.model.deployment for s in selections}
        specs = [selection.cached_spec for selection in selections]
        self._chains = EngineChains(
            config.served_models,
            specs,
            lambda engine_id: RetryingCall(embedders[deployments[engine_id]], "check_health"),
            lambda engine_id: DEPLOYMENT_QUEUES[deployments[engine_id]],
        )
        self._cache = CacheStack(
            specs,
            self._chains.sends(
                lambda engine_id: calls[deployments[engine_id]](engine_id), self._meter
            ),
            l1_max_bytes=settings.l1_max_bytes,
            dtype=config.cache.dtype,
            meter=self._meter,
            l2=open_l2_cache(config.cache, current_service(cache_server), self._meter),
        )
        self._tracer = open_tracer(config.tracing, self._meter, "CacheLookup")
        self._call_limit = CallLimit([*counters.values()], self._cache.limit_calls)
        self._sampler = ReplicaSampler(current_replica(), self._meter, cache=self._cache)
        self._export_task: asyncio.Task[None] | None = None

    async def reconfigure(self, user_config: dict[str, Any] | None, rank: ReplicaRank) -> None:
        """Applies settings. Cached values remain as far as they fit into the new limit.

        Ray calls it before the first request and after each change. The parameter `rank` makes Ray
        call it even without a `user_config`.
        """
        settings = CacheLookupSettings.parse(user_config)
        if self._export_task is None:
            await wait_for_callers(("Ingress",))
        DEPLOYMENT_QUEUES.callers = serve.get_replica_context().world_size or 1
        self._start()
        self._cache.apply(l1_max_bytes=settings.l1_max_bytes, l1_eviction=settings.l1_eviction)
        self._call_limit.set(settings.max_in_flight_calls)

    def _start(self) -> None:
        """Starts the background tasks on the first call."""
        if self._export_task is None:
            self._export_task = asyncio.create_task(export(self._meter, self._cache.gauges))
            self._cache.start()
            self._call_limit.start()

    async def run(self, engine_id: str, groups: tuple[TextGroup, ...]) -> list[GroupResult] | None:
        """Returns each group's outputs, or an error as a value; None for an unknown engine."""
        lookup = self._cache.lookups.get(engine_id)
        if self._tracer is not None:
            groups = self._tracer.receive(groups)
        return None if lookup is None else await collect(partial(_run, lookup), groups)

    async def run_each(self, engine_id: str, groups: tuple[TextGroup, ...]) -> AsyncIterator[Part]:
        """Yields the results of `run` as they become known, cached ones first."""
        lookup = self._cache.lookups.get(engine_id)
        if lookup is None:
            yield None
            return
        if self._tracer is not None:
            groups = self._tracer.receive(groups)
        async for part in deliveries(partial(_run, lookup), groups):
            yield part

    async def cache_state(self) -> CacheState:
        """Returns the state of the L2 cache."""
        return self._cache.state

    async def engine_failures(self) -> Mapping[str, str]:
        """Returns the models whose fallback answers at the moment, with the reasons."""
        return await self._chains.engine_failures()

    async def replica_sample(self) -> ReplicaSample:
        """Returns the state of this replica, for live views."""
        return self._sampler.sample()

    async def cache_report(self) -> CacheReport:
        """Returns statistics of this replica's cache tiers."""
        return await self._cache.report()

    @returns_errors
    async def purge_cache(self, model: str | None = None) -> int | None:
        """Deletes the cached outputs of a model, or of all; see `CacheStack.purge`."""
        return await self._cache.purge(model)

    async def __del__(self) -> None:
        """Closes the cache; Ray awaits it when the replica stops."""
        await self._call_limit.stop()
        await self._cache.close()
        if self._tracer is not None:
            await self._tracer.close()


async def _run(lookup: Lookup, groups: tuple[TextGroup, ...], deliver: Deliver) -> None:
    async def run_group(index: int, group: TextGroup) -> None:
        try:
            deliver(index, await lookup.run_encoded(group))
        except EmbedServeError as error:
            deliver(index, error)

    await asyncio.gather(*(run_group(i, group) for i, group in enumerate(groups)))
