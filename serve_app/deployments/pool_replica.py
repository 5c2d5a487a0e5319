"""A replica that computes the outputs of models for other deployments."""

from collections.abc import AsyncIterator
from functools import partial
from typing import TYPE_CHECKING

from serve_app.deployments.deliveries import GroupResult, Part, collect, deliveries
from serve_app.deployments.retrying_call import returns_errors
from serve_app.deployments.service_identity import current_replica
from serve_app.live.replica_sample import ReplicaSample
from serve_app.live.replica_sampler import ReplicaSampler
from serve_app.meter import Meter
from serve_app.scheduler.engine_pool import ModelPool
from serve_app.types import EngineInfo, TextGroup, Tokenization

if TYPE_CHECKING:
    from serve_app.tracing.tracer import Tracer


class PoolReplica:
    """Computes the outputs of the models of a pool. Doesn't cache."""

    def __init__(self, pool: ModelPool, meter: Meter, tracer: "Tracer | None" = None) -> None:
        self._models = pool
        self._sampler = ReplicaSampler(current_replica(), meter, pool=pool.sample)
        self._tracer = tracer

    @returns_errors
    async def run(self, engine_id: str, groups: tuple[TextGroup, ...]) -> list[GroupResult] | None:
        """Returns each group's outputs, or an error as a value; None for an unknown engine.

        One error as a value if the model can't be loaded.
        """
        if engine_id not in self._models.engine_ids:
            return None
        if self._tracer is not None:
            groups = self._tracer.receive(groups)
        return await collect(partial(self._models.run, engine_id), groups)

    async def run_each(self, engine_id: str, groups: tuple[TextGroup, ...]) -> AsyncIterator[Part]:
        """Yields the results of `run` as soon as batches have been computed."""
        if engine_id not in self._models.engine_ids:
            yield None
            return
        if self._tracer is not None:
            groups = self._tracer.receive(groups)
        async for part in deliveries(partial(self._models.run, engine_id), groups):
            yield part

    @returns_errors
    async def tokenize(
        self, engine_id: str, texts: tuple[str, ...], add_special_tokens: bool
    ) -> list[Tokenization] | None:
        """Returns the tokens of each text, not truncated, or an error as a value.

        Returns None for an unknown engine.
        """
        if engine_id not in self._models.engine_ids:
            return None
        return await self._models.tokenize(engine_id, texts, add_special_tokens)

    @returns_errors
    async def decode(
        self, engine_id: str, rows: tuple[tuple[int, ...], ...], skip_special_tokens: bool
    ) -> list[str] | None:
        """Returns the text of each row of token ids, or an error as a value.

        Returns None for an unknown engine.
        """
        if engine_id not in self._models.engine_ids:
            return None
        return await self._models.decode(engine_id, rows, skip_special_tokens)

    @returns_errors
    async def describe(self, engine_id: str) -> EngineInfo | None:
        """Returns what runs a model, where, and at which precision; None for an unknown engine."""
        return self._models.describe(engine_id) if engine_id in self._models.engine_ids else None

    async def replica_sample(self) -> ReplicaSample:
        """Returns the state of this replica, for live views."""
        return self._sampler.sample()

    async def _close_tracer(self) -> None:
        """Exports the last spans."""
        if self._tracer is not None:
            await self._tracer.close()
