"""Single flight: concurrent requests for the same text compute it once."""

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from serve_app.types import NO_TIMINGS, Lane, TextGroup, Timings, VectorRow

#: A row for each text of a group, and the timings of the group.
Computed = tuple[list[VectorRow], Timings]
#: Computes a group, given the cache keys of its texts.
Compute = Callable[[TextGroup, Sequence[bytes]], Coroutine[Any, Any, Computed]]


class _Flight:
    """One computation in progress, which any number of requests wait for."""

    def __init__(self, task: "asyncio.Task[Computed]", lane: Lane, keys: Sequence[bytes]) -> None:
        self.task = task
        self.lane = lane
        self.keys = keys
        self._waiters = 0

    async def wait(self) -> Computed:
        """Returns the result; cancels the computation if its last waiter is cancelled."""
        self._waiters += 1
        try:
            return await asyncio.shield(self.task)
        finally:
            self._waiters -= 1
            if not self._waiters:
                self.task.cancel()


class FlightResult(NamedTuple):
    """The rows of a request, from the flights that computed its texts."""

    rows: list[VectorRow]
    timings: Timings
    shared: int  #: number of texts that another request's flight computed


class SingleFlight:
    """Lets a request join flights that already compute its texts.

    Cancelling a request doesn't affect the others. A flight's error is raised to the request that
    started it; callers that joined retry on their own. Interactive texts don't join bulk flights,
    since they would wait for all of their texts.
    """

    def __init__(self, compute: Compute) -> None:
        self._compute = compute
        self._flights: dict[bytes, _Flight] = {}

    async def run(self, group: TextGroup, keys: Sequence[bytes]) -> FlightResult:
        """Returns a row for each text of a group, in order.

        Raises:
            EmbedServeError: as raised by `compute`.
        """
        joined = [self._joinable(key, group.lane) for key in keys]
        unjoined = [i for i, flight in enumerate(joined) if flight is None]
        new_flight = (
            self._start(_subset(group, unjoined), [keys[i] for i in unjoined]) if unjoined else None
        )
        by_text = [flight or new_flight for flight in joined]
        flights = list(dict.fromkeys(flight for flight in by_text if flight))
        rows: dict[bytes, VectorRow] = {}
        timings = NO_TIMINGS
        for flight, result in zip(flights, await _wait_all(flights), strict=True):
            if not isinstance(result, BaseException):
                rows.update(zip(flight.keys, result[0], strict=True))
                timings = result[1]
            elif flight is new_flight:
                raise result
        failed = [i for i, key in enumerate(keys) if key not in rows]
        if failed:
            failed_keys = [keys[i] for i in failed]
            retried, timings = await self._compute(_subset(group, failed), failed_keys)
            rows.update(zip(failed_keys, retried, strict=True))
        shared = len(keys) - len(unjoined) - len(failed)
        return FlightResult([rows[key] for key in keys], timings, shared)

    def _joinable(self, key: bytes, lane: Lane) -> _Flight | None:
        flight = self._flights.get(key)
        if flight is None or flight.task.cancelling():
            return None
        return flight if flight.lane == "interactive" or lane == "bulk" else None

    def _start(self, group: TextGroup, keys: Sequence[bytes]) -> _Flight:
        # In an empty context: Ray cancels calls by the context they were made in.
        task = asyncio.get_running_loop().create_task(
            self._compute(group, keys), context=contextvars.Context()
        )
        flight = _Flight(task, group.lane, keys)
        self._flights.update(dict.fromkeys(keys, flight))

        def remove(task: "asyncio.Task[Computed]") -> None:
            for key in keys:
                if self._flights.get(key) is flight:
                    del self._flights[key]

        task.add_done_callback(remove)
        return flight


async def _wait_all(flights: Sequence[_Flight]) -> list[Computed | BaseException]:
    """Returns the result or the error of each flight."""
    if len(flights) > 1:
        return await asyncio.gather(*(f.wait() for f in flights), return_exceptions=True)
    try:
        return [await flights[0].wait()]
    except Exception as error:
        return [error]


def _subset(group: TextGroup, indices: Sequence[int]) -> TextGroup:
    if len(indices) == len(group.texts):
        return group
    return replace(group, texts=tuple(group.texts[i] for i in indices))
