"""Texts that are being read or computed, and the requests that wait for them."""

import asyncio
from collections.abc import Callable, Sequence

from serve_app.spans import Span
from serve_app.types import NO_TIMINGS, EncodedVectors, TextGroup, Tier, Timings

_COMPUTED, _JOINED = bytes([Tier.COMPUTED]), bytes([Tier.JOINED])


class Flight:
    """The texts that one request was the first to miss. Any number of requests wait for them.

    Cancelling a request doesn't affect the others; the flight is cancelled with the last one. The
    first request that takes a computed value gets it as `Tier.COMPUTED`, later ones as
    `Tier.JOINED`, so that what was computed once is charged once.
    """

    def __init__(self, group: TextGroup, on_done: Callable[["Flight"], None]) -> None:
        """Creates a flight without values.

        Args:
            group: the texts.
            on_done: called once, when the flight has succeeded, failed or been cancelled.
        """
        self.group = group
        self._values = [b""] * len(group.texts)
        self._tiers = bytearray(len(group.texts))
        self.timings: Timings = NO_TIMINGS
        self.read_span: Span | None = None  #: of the read from L2; None: not traced
        self.error: Exception | None = None
        self.done = False
        self.on_cancel: Callable[[], None] | None = None  #: stops the work of the flight
        self._on_done = on_done
        self._positions: dict[bytes, int] | None = None
        self._waiting = 0
        self._wakeups: list[asyncio.Future[None]] = []

    def set_value(self, index: int, value: bytes, tier: int) -> None:
        """Stores the value of one text."""
        self._values[index], self._tiers[index] = value, tier

    def take_all(self) -> EncodedVectors:
        """Returns the values in the order of the texts.

        Raises:
            Exception: the error of the flight.
        """
        if self.error is not None:
            raise self.error
        tiers = bytes(self._tiers)
        self._tiers = self._tiers.replace(_COMPUTED, _JOINED)
        return EncodedVectors(self._values, tiers, self.timings)

    def take(self, key: bytes) -> tuple[bytes, int]:
        """Returns the value and the tier of one text of a flight without an error."""
        if self._positions is None:
            self._positions = {key: i for i, key in enumerate(self.group.keys)}
        i = self._positions[key]
        tier = self._tiers[i]
        if tier == Tier.COMPUTED:
            self._tiers[i] = Tier.JOINED
        return self._values[i], tier

    def finish(self, error: Exception | None = None) -> None:
        """Ends the flight, with all values or with an error, and wakes those who wait."""
        self.error, self.done = error, True
        self._on_done(self)
        for wakeup in self._wakeups:
            if not wakeup.done():
                wakeup.set_result(None)

    def join(self) -> None:
        """Adds a request that waits for the flight; it must `leave`."""
        self._waiting += 1

    async def wait(self) -> None:
        """Returns when the flight is done."""
        if not self.done:
            wakeup: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._wakeups.append(wakeup)
            await wakeup

    def leave(self) -> None:
        """Removes a request; without any, a flight that isn't done is cancelled."""
        self._waiting -= 1
        if not self._waiting and not self.done:
            self.done = True
            self._on_done(self)
            if self.on_cancel is not None:
                self.on_cancel()


async def wait_for(flights: Sequence[Flight]) -> None:
    """Waits until all flights are done. Cancelled, it leaves all of them."""
    for flight in flights:
        flight.join()
    try:
        for flight in flights:
            await flight.wait()
    finally:
        for flight in flights:
            flight.leave()
