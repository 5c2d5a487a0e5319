"""Partial hits: what a tier knows of a group of texts is taken, only the rest goes on."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

import numpy as np

from serve_app.cache.key import cache_key
from serve_app.cache.memory import MemoryCache
from serve_app.cache.value import CachedVector, decode, encode
from serve_app.types import NO_TIME, TextGroup, Vectors

#: Answers what a tier doesn't know: the next tier.
Fetch = Callable[[TextGroup], Awaitable[Vectors]]


class Lookup:
    """One tier: answers groups of texts of one space from memory, and asks `rest` for what is not.

    The same class stands in the Ingress, in front of the network, and in CacheLookup, in front of
    the Embedder.
    """

    def __init__(self, space_id: str, dim: int, memory: MemoryCache, rest: Fetch) -> None:
        self._space_id = space_id
        self._dim = dim
        self._memory = memory
        self._rest = rest

    async def fetch(self, group: TextGroup) -> Vectors:
        """Vectors for a group of n texts, values of shape (n, dim), in the group's order.

        Raises:
            EmbedServeError: whatever `rest` raises; nothing is kept then.
        """
        if not group.use_cache:
            return await self._rest(group)
        started = time.perf_counter()
        keys = [cache_key(self._space_id, group.prompt, text) for text in group.texts]
        known = [self._known(key) for key in keys]
        missing = [i for i, cached in enumerate(known) if cached is None]
        looked_up_s = time.perf_counter() - started
        fresh, timings = None, NO_TIME
        if missing:
            texts = tuple(group.texts[i] for i in missing)
            fresh = await self._rest(replace(group, texts=texts))
            timings = fresh.timings
            for place, i in enumerate(missing):
                known[i] = cached = CachedVector(
                    fresh.values[place], int(fresh.tokens[place]), bool(fresh.truncated[place])
                )
                self._memory.put(keys[i], encode(*cached))
        vectors, tokens, truncated = zip(*known, strict=True)
        return Vectors(
            np.array(vectors),
            np.array(tokens, dtype=np.int32),
            np.array(truncated, dtype=np.bool_),
            computed=fresh.computed if fresh else 0,
            timings=timings._replace(cache_s=timings.cache_s + looked_up_s),
        )

    def _known(self, key: bytes) -> CachedVector | None:
        value = self._memory.get(key)
        return None if value is None else decode(value, self._dim)
