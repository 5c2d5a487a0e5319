"""The chains of a process: models with a fallback of the same space → what computes for them."""

from collections.abc import Callable, Mapping, Sequence

from serve_app.cache.coalescer import Send
from serve_app.cache.engine_link import EngineLink, Ping
from serve_app.cache.fallback_chain import FallbackChain, SendChain
from serve_app.cache.spill_over import EngineQueue, SpillOverChain, counting
from serve_app.config import ModelConfig
from serve_app.meter import Meter
from serve_app.models import ModelSpec
from serve_app.service.backend import EngineCalls
from serve_app.types import EngineInfo, Tokenization


class EngineChains:
    """Puts the engines of each model that has a `fallback` into a chain."""

    def __init__(
        self,
        models: Sequence[ModelConfig],
        specs: Sequence[ModelSpec],
        ping: Callable[[str], Ping] | None = None,
        queue: Callable[[str], EngineQueue] | None = None,
    ) -> None:
        """Creates the chains.

        Args:
            models: the settings of all models.
            specs: the models.
            ping: returns for an engine's id what waits until a replica with it responds. None: the
                engines are in this process.
            queue: returns for an engine's id the queue of its deployment. None: the engines are in
                this process, and none spills over.
        """
        by_name = {spec.name: spec for spec in specs}
        self._ping = ping
        self._queue = queue
        #: Models with a fallback, each with the specs of the engines of its space.
        self._chains = [
            (
                model,
                [
                    by_name[name]
                    for name in (model.name, *model.fallback)
                    if by_name[name].space_id == by_name[model.name].space_id
                ],
            )
            for model in models
            if model.fallback
        ]
        self._first_links = list[EngineLink]()

    async def engine_failures(self) -> Mapping[str, str]:
        """Returns the models whose own engine fails at the moment, with the reasons."""
        return {link.name: link.failure for link in self._first_links if link.failure is not None}

    def sends(self, send: Callable[[str], Send], meter: Meter) -> Callable[[str], Send]:
        """Returns `send` with the chains in place of their first engines.

        Args:
            send: returns for an engine's id the function that sends groups to it.
            meter: counts what fallbacks compute.
        """
        counted, chains = self._counted(send), dict[str, Send]()
        for model, specs in self._chains:
            links, model_meter = self._links(model, specs), meter.for_model(model.name)
            self._first_links.append(links[0])
            engine_ids, is_final = [spec.engine_id for spec in specs], _is_final(model, specs)
            if self._queue is None or model.spill_over_after_s is None:
                sends = [*map(counted, engine_ids)]
                chain = SendChain(links, sends, model_meter, is_final=is_final)
            else:
                chain = SpillOverChain(
                    links,
                    [*map(send, engine_ids)],  # it counts them itself
                    model_meter,
                    queues=[*map(self._queue, engine_ids)],
                    after_s=model.spill_over_after_s,
                    is_final=is_final,
                )
            chains[engine_ids[0]] = chain
        return lambda engine_id: chains.get(engine_id) or counted(engine_id)

    def _counted(self, send: Callable[[str], Send]) -> Callable[[str], Send]:
        """Returns `send`, which also counts where the texts of some model may spill over."""
        queue = self._queue
        if queue is None:
            return send
        watched = [
            queue(spec.engine_id)
            for model, specs in self._chains
            if model.spill_over_after_s is not None
            for spec in specs
        ]

        def counted(engine_id: str) -> Send:
            own = queue(engine_id)
            return counting(send(engine_id), own) if own in watched else send(engine_id)

        return counted

    def calls(self, engine: Callable[[str], EngineCalls]) -> Callable[[str], EngineCalls]:
        """Returns `engine` with the chains in place of their first engines.

        Args:
            engine: returns for an engine's id the calls that bypass the cache.
        """
        chains = dict[str, EngineCalls]()
        for model, specs in self._chains:
            engines = [engine(spec.engine_id) for spec in specs]
            chains[specs[0].engine_id] = _ChainCalls(
                self._links(model, specs), engines, is_final=_is_final(model, specs)
            )
        return lambda engine_id: chains.get(engine_id) or engine(engine_id)

    def _links(self, model: ModelConfig, specs: Sequence[ModelSpec]) -> list[EngineLink]:
        return [
            EngineLink(
                spec.name,
                None if self._ping is None else self._ping(spec.engine_id),
                after_s=model.fallback_after_s,
            )
            for spec in specs
        ]


def _is_final(model: ModelConfig, specs: Sequence[ModelSpec]) -> bool:
    """Returns whether no model of another space follows on the engines of a chain."""
    return specs[-1].name == model.fallback[-1]


class _ChainCalls:
    """The calls of a chain of engines that bypass the cache."""

    def __init__(
        self, links: Sequence[EngineLink], engines: Sequence[EngineCalls], *, is_final: bool
    ) -> None:
        self._first = engines[0]
        self._chain = FallbackChain(links, engines, is_final=is_final)

    async def describe(self) -> EngineInfo:
        """Returns the first engine."""
        return await self._first.describe()

    async def tokenize(
        self, texts: tuple[str, ...], add_special_tokens: bool
    ) -> Sequence[Tokenization]:
        """Returns the tokens of each text, without truncation."""
        return await self._chain.call(lambda engine: engine.tokenize(texts, add_special_tokens))

    async def decode(
        self, rows: tuple[tuple[int, ...], ...], skip_special_tokens: bool
    ) -> Sequence[str]:
        """Returns the text of each row of token ids."""
        return await self._chain.call(lambda engine: engine.decode(rows, skip_special_tokens))
