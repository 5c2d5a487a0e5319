"""The same text in several CacheLookup replicas is computed once, where that is asked for."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Protocol

from serve_app.cache.codec import Codec
from serve_app.types import NO_TIME, Row, TextGroup, Tier, Timings, Vectors

_LOOK_EVERY_S = 0.02


class SharedStore(Protocol):
    """What leases need of the store that all replicas see."""

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Values by key; None where there is none, or the store doesn't answer."""
        ...

    async def claim(self, keys: Sequence[bytes], lease_s: float) -> list[bool]:
        """True for each key that nobody else has claimed within `lease_s`."""
        ...


class Leases:
    """Computes what no other replica is computing, and waits for the rest until leases end.

    Each miss costs one more round trip to the store. A replica that dies with its leases delays
    the others by `lease_s` at the most; then they compute it themselves.
    """

    def __init__(
        self,
        store: SharedStore,
        codec: Codec,
        compute: Callable[[TextGroup], Awaitable[Vectors]],
        lease_s: float,
    ) -> None:
        self._store = store
        self._codec = codec
        self._compute = compute
        self._lease_s = lease_s

    async def fetch(self, group: TextGroup, keys: Sequence[bytes]) -> Vectors:
        """Vectors of a group whose texts have these keys.

        Raises:
            EmbedServeError: whatever computing raises.
        """
        claimed = await self._store.claim(keys, self._lease_s)
        if all(claimed):
            return await self._compute(group)
        others = {i: keys[i] for i, mine in enumerate(claimed) if not mine}
        waiting = asyncio.ensure_future(self._wait(others))
        try:
            rows, timings = await self._some(group, [i for i, mine in enumerate(claimed) if mine])
        except BaseException:
            waiting.cancel()
            raise
        rows |= await waiting
        late, waited = await self._some(group, [i for i in others if i not in rows])
        rows |= late
        return Vectors.of([rows[i] for i in range(len(keys))], waited if late else timings)

    async def _some(
        self, group: TextGroup, places: Sequence[int]
    ) -> tuple[dict[int, Row], Timings]:
        if not places:
            return {}, NO_TIME
        texts = tuple(group.texts[i] for i in places)
        vectors = await self._compute(replace(group, texts=texts))
        return dict(zip(places, vectors.rows(), strict=True)), vectors.timings

    async def _wait(self, keys: dict[int, bytes]) -> dict[int, Row]:
        rows: dict[int, Row] = {}
        until = time.monotonic() + self._lease_s
        while len(rows) < len(keys) and time.monotonic() < until:
            await asyncio.sleep(_LOOK_EVERY_S)
            left = [i for i in keys if i not in rows]
            values = await self._store.get_many([keys[i] for i in left])
            for i, value in zip(left, values, strict=True):
                row = None if value is None else self._codec.decode(value, Tier.L2)
                if row is not None:
                    rows[i] = row
        return rows
