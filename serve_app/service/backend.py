"""The tiers below the service of one model: a cache, and an engine in this process or another."""

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from serve_app.types import CacheState, EngineInfo, Outputs, TextGroup, Tokenization


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


class Backend(EngineCalls, Protocol):
    """The tiers below the service: caches, tokenizer and engine."""

    async def run(self, group: TextGroup) -> Outputs:
        """Returns the outputs of the group's task, in the order of its texts.

        Vectors have all dimensions; scores are logits.
        """
        ...

    async def cache_state(self) -> CacheState:
        """Returns the state of the L2 cache."""
        ...


class CachedBackend:
    """A `Backend` of a cache and the engine behind it."""

    def __init__(
        self,
        run: Callable[[TextGroup], Coroutine[Any, Any, Outputs]],
        engine: EngineCalls,
        cache_state: Callable[[], Coroutine[Any, Any, CacheState]],
    ) -> None:
        """Combines a cache and an engine.

        Args:
            run: looks a group up, and computes with `engine` what is missing.
            engine: everything else.
            cache_state: returns the state of L2.
        """
        self.run = run
        self.describe = engine.describe
        self.tokenize = engine.tokenize
        self.decode = engine.decode
        self.cache_state = cache_state
