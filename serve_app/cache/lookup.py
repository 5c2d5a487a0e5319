"""Partial hits: what a tier knows of a group of texts is taken, only the rest goes on."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

import numpy as np

from serve_app.cache.key import cache_key
from serve_app.cache.memory import MemoryCache
from serve_app.cache.value import decode, encode
from serve_app.types import TextGroup, Vectors

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
        n = len(group.texts)
        values = np.empty((n, self._dim), dtype=np.float32)
        tokens = np.empty(n, dtype=np.int32)
        truncated = np.empty(n, dtype=np.bool_)
        keys = [cache_key(self._space_id, group.prompt, text) for text in group.texts]
        missing = []
        for i, key in enumerate(keys):
            value = self._memory.get(key)
            cached = None if value is None else decode(value, self._dim)
            if cached is None:
                missing.append(i)
            else:
                values[i], tokens[i], truncated[i] = cached
        found = Vectors(values, tokens, truncated, computed=0)
        looked_up_s = time.perf_counter() - started
        if missing:
            found = await self._fill(found, group, keys, missing)
        cache_s = found.timings.cache_s + looked_up_s
        return replace(found, timings=found.timings._replace(cache_s=cache_s))

    async def _fill(
        self, found: Vectors, group: TextGroup, keys: list[bytes], missing: list[int]
    ) -> Vectors:
        all_missing = len(missing) == len(keys)
        texts = group.texts if all_missing else tuple(group.texts[i] for i in missing)
        fresh = await self._rest(replace(group, texts=texts))
        for i, vector, tokens, truncated in zip(
            missing, fresh.values, fresh.tokens.tolist(), fresh.truncated.tolist(), strict=True
        ):
            self._memory.put(keys[i], encode(vector, tokens, truncated))
        if all_missing:
            return fresh
        found.values[missing] = fresh.values
        found.tokens[missing] = fresh.tokens
        found.truncated[missing] = fresh.truncated
        return replace(found, computed=fresh.computed, timings=fresh.timings)
