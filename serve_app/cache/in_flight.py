"""The same text at the same time is computed once."""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from serve_app.types import NO_TIMINGS, Lane, TextGroup, Timings, VectorRow

#: A row for each text of a group, and where the time went.
Computed = tuple[list[VectorRow], Timings]
#: Computes a group whose texts have these keys.
Compute = Callable[[TextGroup, Sequence[bytes]], Awaitable[Computed]]


class _Flight:
    """Texts that are being computed, and how many requests wait for them."""

    def __init__(self, task: "asyncio.Task[Computed]", lane: Lane, keys: Sequence[bytes]) -> None:
        self.task = task
        self.lane = lane
        self.keys = keys
        self._waiting = 0

    async def wait(self) -> Computed:
        """What it gives. It goes on while anybody waits; the last one to leave ends it."""
        self._waiting += 1
        try:
            return await asyncio.shield(self.task)
        finally:
            self._waiting -= 1
            if not self._waiting:
                self.task.cancel()


class FlightResult(NamedTuple):
    """What a request gets of the flights that its texts were on."""

    rows: list[VectorRow]
    timings: Timings
    shared: int  #: texts that another request had computed


class SingleFlight:
    """Lets requests for a text join the one that has it computed already.

    A request that leaves takes nothing from the others. An error is that of the request whose
    texts were computed: who only joined asks again. Interactive texts don't join bulk ones, they
    would wait behind all of these.
    """

    def __init__(self, compute: Compute) -> None:
        self._compute = compute
        self._flights: dict[bytes, _Flight] = {}

    async def run(self, group: TextGroup, keys: Sequence[bytes]) -> FlightResult:
        """A row for each text of a group, in its order.

        Raises:
            EmbedServeError: whatever computing raises.
        """
        shared = [self._joinable(key, group.lane) for key in keys]
        alone = [i for i, flight in enumerate(shared) if flight is None]
        mine = self._start(_part(group, alone), [keys[i] for i in alone]) if alone else None
        flights = [flight or mine for flight in shared]
        distinct = list(dict.fromkeys(flight for flight in flights if flight))
        rows: dict[bytes, VectorRow] = {}
        timings = NO_TIMINGS
        for flight, answer in zip(distinct, await _all(distinct), strict=True):
            if not isinstance(answer, BaseException):
                rows.update(zip(flight.keys, answer[0], strict=True))
                timings = answer[1]
            elif flight is mine:
                raise answer
        lost = [i for i, key in enumerate(keys) if key not in rows]
        if lost:
            again = [keys[i] for i in lost]
            fresh, timings = await self._compute(_part(group, lost), again)
            rows.update(zip(again, fresh, strict=True))
        return FlightResult(
            [rows[key] for key in keys], timings, len(keys) - len(alone) - len(lost)
        )

    def _joinable(self, key: bytes, lane: Lane) -> _Flight | None:
        flight = self._flights.get(key)
        if flight is None or flight.task.cancelling():
            return None
        return flight if flight.lane == "interactive" or lane == "bulk" else None

    def _start(self, group: TextGroup, keys: Sequence[bytes]) -> _Flight:
        # In a context of its own: Ray cancels calls by the context they were made in.
        task = asyncio.get_running_loop().create_task(
            self._run(group, keys), context=contextvars.Context()
        )
        flight = _Flight(task, group.lane, keys)
        self._flights.update(dict.fromkeys(keys, flight))

        def landed(task: "asyncio.Task[Computed]") -> None:
            for key in keys:
                if self._flights.get(key) is flight:
                    del self._flights[key]

        task.add_done_callback(landed)
        return flight

    async def _run(self, group: TextGroup, keys: Sequence[bytes]) -> Computed:
        return await self._compute(group, keys)


async def _all(flights: Sequence[_Flight]) -> list[Computed | BaseException]:
    """What each gives, or the error it ends with."""
    if len(flights) > 1:
        return await asyncio.gather(*(f.wait() for f in flights), return_exceptions=True)
    try:
        return [await flights[0].wait()]
    except Exception as error:
        return [error]


def _part(group: TextGroup, places: Sequence[int]) -> TextGroup:
    if len(places) == len(group.texts):
        return group
    return replace(group, texts=tuple(group.texts[i] for i in places))
