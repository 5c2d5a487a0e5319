"""Live snapshots for many listeners, from one sampler that runs while anybody listens."""

import asyncio
import contextvars
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, NamedTuple

from serve_app.errors import Overloaded, Unavailable
from serve_app.live.fleet_sample import FleetSample
from serve_app.live.model_status import ModelStatus
from serve_app.live.snapshot import Snapshot
from serve_app.live.summary import summarize

logger = logging.getLogger(__name__)

Topology = Literal["separate", "colocated", "standalone"]

MAX_LISTENERS = 32
#: Health and engines of models change rarely, and asking for them costs calls.
_STATUS_INTERVAL_S = 5.0
#: How long the first snapshot waits for them.
_FIRST_STATUS_S = 0.5
#: Timers may end a little early.
_TOLERANCE = 0.9


class TimedSample(NamedTuple):
    """A sample and when it was taken."""

    number: int  #: counts the samples of a feed
    taken_s: float  #: monotonic
    unix: float
    fleet: FleetSample


class LiveFeed:
    """Samples a service while anybody listens. Belongs to one event loop."""

    def __init__(
        self,
        collect: Callable[[], Awaitable[FleetSample]],
        describe: Callable[[], Awaitable[Sequence[ModelStatus]]],
        *,
        models: Sequence[ModelStatus],
        topology: Topology = "standalone",
        max_listeners: int = MAX_LISTENERS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Creates a feed that does nothing until somebody listens.

        Args:
            collect: returns a sample of all replicas; bounded in time.
            describe: returns the state of the models; bounded in time.
            models: the models before `describe` has returned.
            topology: of the service.
            max_listeners: limit of listeners.
            clock: monotonic time in seconds.
        """
        self._collect = collect
        self._describe = describe
        self._models = models
        self._topology: Topology = topology
        self._max_listeners = max_listeners
        self._clock = clock
        self._listeners = set[LiveListener]()
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._described_s: float | None = None
        self._description: asyncio.Task[None] | None = None
        self._is_closed = False
        self._snapshots: dict[tuple[int | None, int], Snapshot] = {}
        self.latest: TimedSample | None = None  #: None: nobody listens, or the first is on its way
        self.previous: TimedSample | None = None

    @property
    def listeners(self) -> int:
        """The number of listeners."""
        return len(self._listeners)

    def listen(self, interval_s: float) -> "LiveListener":
        """Adds a listener, who must be closed.

        Args:
            interval_s: time between two snapshots.

        Raises:
            Overloaded: there are too many listeners.
            Unavailable: the process stops.
        """
        if self._is_closed:
            raise Unavailable("The service is shutting down; try again.", 1)
        if len(self._listeners) >= self._max_listeners:
            raise Overloaded(
                f"{self._max_listeners} clients listen to `/live` of this process already; try "
                "later, or read `/metrics`.",
                5,
            )
        listener = LiveListener(self, interval_s, self._clock)
        self._listeners.add(listener)
        self._wake.set()  # for a shorter interval than that of the others
        if self._task is None:
            # In an empty context: Ray cancels calls by the context they were made in.
            self._task = asyncio.get_running_loop().create_task(
                self._run(), context=contextvars.Context()
            )
        return listener

    def remove(self, listener: "LiveListener") -> None:
        """Removes a listener. Without any, nothing is sampled."""
        self._listeners.discard(listener)
        if not self._listeners:
            for task in (self._task, self._description):
                if task is not None:
                    task.cancel()
            self._task = self._description = None
            self.latest = self.previous = None
            self._snapshots.clear()

    def close(self) -> None:
        """Ends all listeners, and admits no more: the process stops."""
        self._is_closed = True
        for listener in [*self._listeners]:
            listener.end()

    def snapshot(self, before: TimedSample | None, after: TimedSample) -> Snapshot:
        """Returns a snapshot, which listeners with the same interval share."""
        key = (None if before is None else before.number, after.number)
        if key not in self._snapshots:
            self._snapshots[key] = summarize(
                None if before is None else before.fleet,
                after.fleet,
                self._models,
                topology=self._topology,
                unix=after.unix,
            )
        return self._snapshots[key]

    async def _run(self) -> None:
        number = 0
        while True:
            started_s = self._clock()
            number += 1
            self._refresh_models()
            try:
                fleet = await self._collect()
            except Exception:  # the next sample follows
                logger.warning("No sample of the service could be taken.", exc_info=True)
            else:
                if self.latest is None and self._description is not None:
                    await asyncio.wait({self._description}, timeout=_FIRST_STATUS_S)
                self._publish(TimedSample(number, self._clock(), time.time(), fleet))
                if fleet.is_stopping:
                    self.close()
            await self._sleep_until(started_s)

    def _publish(self, sample: TimedSample) -> None:
        self._snapshots.clear()
        self.previous, self.latest = self.latest, sample
        for listener in self._listeners:
            listener.notify()

    async def _sleep_until(self, started_s: float) -> None:
        """Sleeps until the next sample is due, by the shortest interval of all listeners."""
        while True:
            self._wake.clear()
            interval_s = min((each.interval_s for each in self._listeners), default=1.0)
            left_s = started_s + interval_s - self._clock()
            if left_s <= 0:
                return
            try:
                async with asyncio.timeout(left_s):
                    await self._wake.wait()
            except TimeoutError:
                return

    def _refresh_models(self) -> None:
        due = self._described_s is None or self._clock() - self._described_s >= _STATUS_INTERVAL_S
        if due and (self._description is None or self._description.done()):
            self._described_s = self._clock()
            self._description = asyncio.create_task(self._update_models())

    async def _update_models(self) -> None:
        try:
            self._models = await self._describe()
        except Exception:  # the next attempt follows
            logger.warning("The state of the models could not be read.", exc_info=True)


class LiveListener:
    """Receives snapshots of a feed at its own interval."""

    def __init__(self, feed: LiveFeed, interval_s: float, clock: Callable[[], float]) -> None:
        self.interval_s = interval_s
        self._feed = feed
        self._clock = clock
        self._news = asyncio.Event()
        self._ended = False
        self._last: TimedSample | None = None

    async def next(self, timeout_s: float | None = None) -> Snapshot | None:
        """Returns the next snapshot; the first one as soon as there is one.

        Its rates are those since the previous snapshot. The first one has rates if others were
        listening before.

        Args:
            timeout_s: how long to wait; None: until there is one.

        Returns:
            The snapshot; None: there is none in time, or never again: see `has_ended`.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while not self._ended:
                    latest = self._feed.latest
                    if latest is not None and self._is_due(latest):
                        before = self._feed.previous if self._last is None else self._last
                        self._last = latest
                        return self._feed.snapshot(before, latest)
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            pass
        return None

    async def next_with_rates(self) -> Snapshot | None:
        """Returns the first snapshot with rates, after up to two intervals; None: it has ended."""
        while True:
            had_before = self._last is not None or self._feed.previous is not None
            snapshot = await self.next()
            if snapshot is None or had_before:
                return snapshot

    @property
    def has_ended(self) -> bool:
        """Whether there are no more snapshots, because the process stops."""
        return self._ended

    def _is_due(self, sample: TimedSample) -> bool:
        if self._last is None:
            return True
        if sample is self._last:
            return False
        return sample.taken_s - self._last.taken_s >= self.interval_s * _TOLERANCE

    def notify(self) -> None:
        """Says that there is a new sample."""
        self._news.set()

    def end(self) -> None:
        """Ends the snapshots."""
        self._ended = True
        self._news.set()

    def close(self) -> None:
        """Stops listening. Idempotent."""
        self._ended = True
        self._feed.remove(self)
