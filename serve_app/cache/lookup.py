"""Partial hits: what the cache knows of a group of texts is taken, only the rest is computed."""

from collections.abc import Awaitable, Callable

import numpy as np

from serve_app.cache.key import cache_key
from serve_app.cache.memory import MemoryCache
from serve_app.cache.value import decode, encode
from serve_app.types import TextGroup, Vectors

#: Computes full-size vectors of texts, prompts already in front.
Compute = Callable[[tuple[str, ...]], Awaitable[Vectors]]


class Lookup:
    """Answers groups of texts of one space from memory, and from `compute` what memory lacks."""

    def __init__(self, space_id: str, dim: int, memory: MemoryCache, compute: Compute) -> None:
        self._space_id = space_id
        self._dim = dim
        self._memory = memory
        self._compute = compute

    async def fetch(self, group: TextGroup) -> Vectors:
        """Vectors for a group of n texts, values of shape (n, dim), in the group's order.

        Raises:
            EmbedServeError: whatever `compute` raises; nothing is kept then.
        """
        n = len(group.texts)
        values = np.empty((n, self._dim), dtype=np.float32)
        tokens = np.empty(n, dtype=np.int32)
        truncated = np.empty(n, dtype=np.bool_)
        keys = [cache_key(self._space_id, group.prompt, text) for text in group.texts]
        missing = []
        for i, key in enumerate(keys):
            value = self._memory.get(key) if group.use_cache else None
            cached = None if value is None else decode(value, self._dim)
            if cached is None:
                missing.append(i)
            else:
                values[i], tokens[i], truncated[i] = cached
        if missing:
            fresh = await self._compute(tuple(group.prompt + group.texts[i] for i in missing))
            values[missing], tokens[missing] = fresh.values, fresh.tokens
            truncated[missing] = fresh.truncated
            if group.use_cache:
                for i in missing:
                    self._memory.put(keys[i], encode(values[i], int(tokens[i]), bool(truncated[i])))
        return Vectors(values, tokens, truncated, computed=len(missing))
