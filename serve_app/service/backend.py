"""The tiers below the service: a cache, and an engine in this process or in another."""

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from serve_app.cache.stack import CacheStack
from serve_app.types import CacheState, EngineInfo, TextGroup, Tokenization, TokenVectors, Vectors


class EngineCalls(Protocol):
    """What is computed without a cache, by an engine in this process or in another."""

    async def describe(self) -> EngineInfo:
        """Returns the engine of a live replica."""
        ...

    async def tokenize(
        self, texts: tuple[str, ...], add_special_tokens: bool
    ) -> Sequence[Tokenization]:
        """Returns the tokens of each text, without truncation."""
        ...

    async def decode(
        self, rows: tuple[tuple[int, ...], ...], skip_special_tokens: bool
    ) -> Sequence[str]:
        """Returns the text of each row of token ids."""
        ...

    async def embed_tokens(self, group: TextGroup) -> Sequence[TokenVectors]:
        """Returns one vector per token of each of the group's texts."""
        ...


class Backend(EngineCalls, Protocol):
    """The tiers below the service: caches, tokenizer and engine."""

    async def embed(self, group: TextGroup) -> Vectors:
        """Returns the vectors of the group's texts, in their order and with all dimensions."""
        ...

    async def cache_state(self) -> CacheState:
        """Returns the state of the L2 cache."""
        ...


class CachedBackend:
    """A `Backend` of a cache and the engine behind it."""

    def __init__(
        self,
        cache: CacheStack,
        engine: EngineCalls,
        cache_state: Callable[[], Coroutine[Any, Any, CacheState]] | None = None,
    ) -> None:
        """Combines a cache and an engine.

        Args:
            cache: its next tier computes vectors with `engine`, maybe through other tiers.
            engine: everything else.
            cache_state: returns the state of L2; None: `cache` has it.
        """
        self._cache = cache
        self.embed = cache.embed
        self.describe = engine.describe
        self.tokenize = engine.tokenize
        self.decode = engine.decode
        self.embed_tokens = engine.embed_tokens
        self.cache_state = cache_state or self._own_cache_state

    async def _own_cache_state(self) -> CacheState:
        return self._cache.state
