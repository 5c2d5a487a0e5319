"""Spill-over: texts go to the next engine of a chain while the first has too much to do."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from itertools import chain
from typing import NamedTuple, Protocol

from serve_app.cache.coalescer import Deliver, Send
from serve_app.cache.engine_link import EngineLink
from serve_app.cache.fallback_chain import SendChain
from serve_app.meter import ModelMeter
from serve_app.types import Lane, TextGroup


class Forecast(NamedTuple):
    """When texts that are sent to a deployment now are computed, in seconds from now."""

    wait_s: float  #: until the first of them starts
    run_s: float  #: from then until the last one is computed

    @property
    def done_s(self) -> float:
        """When all of them are computed."""
        return self.wait_s + self.run_s


class EngineQueue(Protocol):
    """What is on its way to the replicas with an engine."""

    def forecast(self, lane: Lane, tokens: int) -> Forecast | None:
        """Returns when texts of so many tokens would be computed; None: unknown."""
        ...

    def sending(self, groups: tuple[TextGroup, ...]) -> AbstractContextManager[None]:
        """Counts groups of one lane as long as the context lasts."""
        ...


def choose_engine(forecasts: Iterable[Forecast | None], after_s: float) -> int:
    """Returns the index of the engine that computes texts.

    The first one, unless they would wait there for longer than `after_s`, and another one is done
    sooner. So beyond the objective each engine gets a share by its speed.

    Args:
        forecasts: of the engines, the preferred one first; None: unknown. Within the objective,
            only the first one is taken from an iterator.
        after_s: the objective of the first one.
    """
    forecasts = iter(forecasts)
    first = next(forecasts)
    if first is None or first.wait_s <= after_s:
        return 0
    forecasts = chain((first,), forecasts)
    done = {i: forecast.done_s for i, forecast in enumerate(forecasts) if forecast is not None}
    return min(done, key=done.__getitem__)


class SpillOverChain(SendChain):
    """A chain whose calls begin with the engine that `choose_engine` returns.

    If that one fails, they go on with the others. Its link bounds how often it is tried then.
    """

    def __init__(
        self,
        links: Sequence[EngineLink],
        sends: Sequence[Send],
        meter: ModelMeter,
        *,
        queues: Sequence[EngineQueue],
        after_s: float,
        is_final: bool = True,
    ) -> None:
        """A chain.

        Args:
            links: the states of the engines.
            sends: send groups to the engines, the preferred one first.
            meter: counts what other engines than the first one compute.
            queues: those of the engines.
            after_s: see `choose_engine`.
            is_final: whether no model of another space follows.
        """
        super().__init__(links, sends, meter, is_final=is_final)
        self._queues = queues
        self._after_s = after_s

    async def __call__(self, groups: tuple[TextGroup, ...], deliver: Deliver) -> None:
        """Computes groups of one lane; see `SendChain`."""
        order = [*range(len(self._engines))]
        order.insert(0, order.pop(self._choose(groups)))
        await self._send(order, groups, deliver)

    def _choose(self, groups: tuple[TextGroup, ...]) -> int:
        lane, tokens = groups[0].lane, sum(group.estimated_tokens for group in groups)
        forecasts = (queue.forecast(lane, tokens) for queue in self._queues)
        return choose_engine(forecasts, self._after_s)

    async def _call(
        self, position: int, groups: tuple[TextGroup, ...], deliver: Deliver, is_last: bool
    ) -> None:
        # Counted before the first `await`: the next call is decided before this one is on its way.
        with self._queues[position].sending(groups):
            await super()._call(position, groups, deliver, is_last)


def counting(send: Send, queue: EngineQueue) -> Send:
    """Returns `send` of a model that shares a deployment with one of a `SpillOverChain`."""

    async def send_counted(groups: tuple[TextGroup, ...], deliver: Deliver) -> None:
        with queue.sending(groups):
            await send(groups, deliver)

    return send_counted
