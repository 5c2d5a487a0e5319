"""A chain of engines of one space: the next one computes what the one before it can't."""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Generic, TypeGuard, TypeVar

from serve_app.cache.coalescer import Deliver, Result, Send
from serve_app.cache.engine_link import EngineLink
from serve_app.errors import EmbedServeError
from serve_app.meter import ModelMeter
from serve_app.metrics import FALLBACK_TEXTS, SPILLED_TEXTS
from serve_app.types import TextGroup

T = TypeVar("T")
EngineT = TypeVar("EngineT")


class FallbackChain(Generic[EngineT]):
    """Makes a call of the first engine that answers it."""

    def __init__(
        self, links: Sequence[EngineLink], engines: Sequence[EngineT], *, is_final: bool = True
    ) -> None:
        """A chain.

        Args:
            links: the states of the engines.
            engines: the engines, the preferred one first.
            is_final: whether no model of another space follows.
        """
        self._engines = [*zip(links, engines, strict=True)]
        self._last = self._engines[-1][0] if is_final else None

    async def call(self, method: Callable[[EngineT], Awaitable[T]]) -> T:
        """Returns the result of `method` of the first engine that has one.

        Raises:
            EmbedServeError: the first engine's error, if no engine has a result. An error that
                doesn't allow a fallback is raised at once, by whichever engine.
        """
        errors = list[EmbedServeError]()
        for link, engine in self._engines:
            try:
                result = await link.run(partial(method, engine), is_last=link is self._last)
            except EmbedServeError as error:
                if not error.allows_fallback:
                    raise
                link.record(error)
                errors.append(error)
            else:
                link.record(None)
                return result
        raise errors[0]


class SendChain:
    """A `Send` that computes each group with the first engine that can."""

    def __init__(
        self,
        links: Sequence[EngineLink],
        sends: Sequence[Send],
        meter: ModelMeter,
        *,
        is_final: bool = True,
    ) -> None:
        """A chain.

        Args:
            links: the states of the engines.
            sends: send groups to the engines, the preferred one first.
            meter: counts what other engines than the first one compute.
            is_final: whether no model of another space follows.
        """
        self._engines = [*zip(links, sends, strict=True)]
        self._meter = meter
        self._is_final = is_final

    async def __call__(self, groups: tuple[TextGroup, ...], deliver: Deliver) -> None:
        """Computes groups, and delivers the outputs of each, or the first engine's error.

        An error that doesn't allow a fallback is delivered at once. A group whose deadline has
        passed gets no further engine.
        """
        await self._send(range(len(self._engines)), groups, deliver)

    async def _send(
        self, order: Sequence[int], groups: Sequence[TextGroup], deliver: Deliver
    ) -> None:
        """Sends groups to the first engine of an order, and those that fail to the following."""
        position, following = order[0], order[1:]
        link, _ = self._engines[position]
        failures = dict[int, EmbedServeError]()
        settled = set[int]()
        computed = False

        def settle(index: int, result: Result) -> None:
            nonlocal computed
            if index in settled:  # the link has given the call up
                return
            settled.add(index)
            if _allows_fallback(result):
                failures[index] = result
                return
            if not isinstance(result, Exception):
                computed = True
                if position:
                    metric = SPILLED_TEXTS if 0 in following else FALLBACK_TEXTS
                    self._meter.add(metric, len(groups[index].texts), link.name)
            deliver(index, result)

        try:
            await self._call(position, tuple(groups), settle, not following and self._is_final)
        except EmbedServeError as error:
            for index in range(len(groups)):
                settle(index, error)
        if computed or failures:
            link.record(None if computed else next(iter(failures.values())))
        if failures:
            await self._send_next(following, groups, failures, deliver)

    async def _call(
        self, position: int, groups: tuple[TextGroup, ...], deliver: Deliver, is_last: bool
    ) -> None:
        """Makes the call of the engine at a position."""
        link, send = self._engines[position]
        await link.run(lambda: send(groups, deliver), is_last=is_last)

    async def _send_next(
        self,
        order: Sequence[int],
        groups: Sequence[TextGroup],
        failures: Mapping[int, EmbedServeError],
        deliver: Deliver,
    ) -> None:
        """Computes the groups that failed with the first engine of an order, if there is one."""
        now_s = time.monotonic()
        left = list[int]()
        for index, error in failures.items():
            if order and groups[index].deadline_s > now_s:
                left.append(index)
            else:
                deliver(index, error)

        def deliver_or_fail(i: int, result: Result) -> None:
            deliver(left[i], failures[left[i]] if _allows_fallback(result) else result)

        if left:
            await self._send(order, [groups[index] for index in left], deliver_or_fail)


def _allows_fallback(result: Result) -> TypeGuard[EmbedServeError]:
    return isinstance(result, EmbedServeError) and result.allows_fallback
