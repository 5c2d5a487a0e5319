"""The models of a process that providers run.

groups of texts → scheduler → calls of the provider → vectors as cache values
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial
from typing import NamedTuple

from serve_app.config import ProviderSettings, QueueSettings
from serve_app.errors import EmbedServeError, UnsupportedOperation
from serve_app.meter import Gauges, Meter
from serve_app.metrics import PROVIDER_CALLS_IN_FLIGHT, PROVIDER_UP, QUEUED_TEXTS, QUEUED_TOKENS
from serve_app.model_spec import ModelSpec
from serve_app.providers.base import Provider
from serve_app.providers.call_scheduler import CallScheduler
from serve_app.providers.provider_group import ProviderGroup
from serve_app.scheduler.canaries import Canaries, CanarySchedule
from serve_app.scheduler.canary import Canary
from serve_app.scheduler.delivery import Encode, deliver_outputs
from serve_app.scheduler.engine_pool import PooledEngine
from serve_app.scheduler.pool_sample import PoolSample
from serve_app.tasks import Task
from serve_app.types import EncodedVectors, EngineInfo, Outputs, TextGroup, Tokenization


class ProviderModel(NamedTuple):
    """A model that a provider runs."""

    spec: ModelSpec
    kind: str  #: name of the provider, such as `openai`
    provider: Provider
    settings: ProviderSettings
    encoders: Mapping[Task, Encode]  #: for each task, returns outputs as cache values
    waits: bool = True  #: see `CallGate`
    canary: CanarySchedule | None = None  #: None: vectors aren't measured


class ProviderPool:
    """Embeds texts by calls of providers. Doesn't cache. Belongs to one event loop.

    It has no threads and computes nothing. Each model has its own queues, breaker and connections.
    """

    def __init__(self, models: Mapping[str, ProviderModel], *, meter: Meter) -> None:
        """Creates a pool.

        Args:
            models: the models by their `engine_id`; may be empty.
            meter: counts calls.
        """
        self._models = models
        self._schedulers = {
            engine_id: CallScheduler(
                model.spec,
                model.provider,
                model.settings,
                meter.for_model(model.spec.name),
                settings=QueueSettings(),
                waits=model.waits,
            )
            for engine_id, model in models.items()
        }
        self._canaries = Canaries(
            {
                id_: Canary(
                    model.spec.name,
                    *model.canary,
                    partial(self._embed_canary, id_),
                    partial(self._is_busy, id_),
                )
                for id_, model in models.items()
                if model.canary
            }
        )

    @property
    def engine_ids(self) -> Set[str]:
        """The ids of the models' engines."""
        return self._models.keys()

    def model(self, engine_id: str) -> PooledEngine:
        """Returns the calls of one model."""
        return PooledEngine(self, engine_id)

    def gauges(self) -> Gauges:
        """Returns the current value of each gauge; none without models."""
        if not self._models:
            return {}
        schedulers = {
            model.spec.name: self._schedulers[engine_id]
            for engine_id, model in self._models.items()
        }
        return {
            QUEUED_TOKENS: {
                (lane, "embed", name): tokens
                for name, scheduler in schedulers.items()
                for lane, tokens in scheduler.queued_tokens().items()
            },
            QUEUED_TEXTS: {
                (lane, "embed", name): texts
                for name, scheduler in schedulers.items()
                for lane, texts in scheduler.queued_texts().items()
            },
            PROVIDER_CALLS_IN_FLIGHT: {
                (name,): float(s.in_flight) for name, s in schedulers.items()
            },
            PROVIDER_UP: {(name,): float(s.failure is None) for name, s in schedulers.items()},
            **self._canaries.gauges(),
        }

    def sample(self) -> PoolSample:
        """Returns the state of the queues; there are no engines, and no age of texts is known."""
        return PoolSample(
            {
                (lane, model.spec.name): tokens
                for engine_id, model in self._models.items()
                for lane, tokens in self._schedulers[engine_id].queued_tokens().items()
            },
            {},
            {},
            None,
        )

    def start(self) -> None:
        """Starts the canaries. Idempotent; call it in the event loop."""
        self._canaries.start()

    def apply(self, settings: QueueSettings) -> None:
        """Applies settings to the next groups."""
        for scheduler in self._schedulers.values():
            scheduler.settings = settings

    async def stop(self) -> None:
        """Cancels the calls, fails queued and later groups with `Unavailable`, disconnects."""
        self._canaries.stop()
        await asyncio.gather(*(scheduler.stop() for scheduler in self._schedulers.values()))

    async def run(
        self,
        engine_id: str,
        groups: Sequence[TextGroup],
        deliver: Callable[[int, EncodedVectors | Exception], None],
    ) -> None:
        """Embeds groups, and delivers the index and the vectors or the error of each.

        Cancelling it removes the groups from the queue, and cancels calls that no others need.
        """
        model, scheduler = self._models[engine_id], self._schedulers[engine_id]
        pending, indices = list[ProviderGroup](), list[int]()
        for i, group in enumerate(groups):
            texts = [text for text in group.texts if isinstance(text, str)]
            if len(texts) == len(group.texts):
                pending.append(ProviderGroup(group, texts))
                indices.append(i)
            else:
                deliver(i, _not_texts(model.spec.name))
        if pending:
            await deliver_outputs(
                pending,
                model.encoders,
                lambda: scheduler.submit(pending),
                lambda i, result: deliver(indices[i], result),
            )

    async def _embed_canary(self, engine_id: str, group: TextGroup) -> Outputs | EmbedServeError:
        pending = ProviderGroup(group, [text for text in group.texts if isinstance(text, str)])
        await self._schedulers[engine_id].submit([pending])
        return await pending.future

    def _is_busy(self, engine_id: str) -> bool:
        return any(self._schedulers[engine_id].queued_tokens().values())

    async def tokenize(
        self, engine_id: str, texts: tuple[str, ...], add_special_tokens: bool
    ) -> list[Tokenization]:
        """Raises `UnsupportedOperation`."""
        raise _no_tokenizer(self._models[engine_id].spec.name)

    async def decode(
        self, engine_id: str, rows: tuple[tuple[int, ...], ...], skip_special_tokens: bool
    ) -> list[str]:
        """Raises `UnsupportedOperation`."""
        raise _no_tokenizer(self._models[engine_id].spec.name)

    def describe(self, engine_id: str) -> EngineInfo:
        """Returns the provider, and why it gets no calls while its breaker is open."""
        model, failure = self._models[engine_id], self._schedulers[engine_id].failure
        return EngineInfo(
            engine=model.kind,
            device="remote",
            precision="fp32",
            threads=0,
            space_id=model.spec.space_id,
            versions=model.provider.versions,
            drift=self._canaries.drift(engine_id),
            failure=None if failure is None else str(failure),
        )


def _no_tokenizer(model: str) -> UnsupportedOperation:
    return UnsupportedOperation(
        f"The provider of {model!r} has no tokenizer to call, so texts can't be tokenized, cut or "
        "split into chunks here. Send texts within the model's token limit, without options that "
        "shorten them.",
        "model",
    )


def _not_texts(model: str) -> UnsupportedOperation:
    return UnsupportedOperation(
        f"The provider of {model!r} takes texts only, neither token ids nor images. Where clients "
        "send token ids of OpenAI's models, set `token_ids: cl100k_base`.",
        "texts",
    )
