"""Spelling and decoding, for callers that want tokens and no vectors."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import TypeVar

from serve_app.engines.base import Engine
from serve_app.errors import EmbedServeError, InferenceError
from serve_app.types import Tokenization

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


class TokenizerService:
    """Asks an engine's tokenizer, off the event loop. An error of the service is a value."""

    def __init__(self, engine: Engine, thread: Executor) -> None:
        """Uses `thread`, where long texts are tokenized too, and so waits its turn there."""
        self._engine = engine
        self._thread = thread

    async def spell(
        self, texts: Sequence[str], *, special: bool
    ) -> list[Tokenization] | EmbedServeError:
        """How the tokenizer spells texts, not cut; `special`: with special tokens around them."""
        return await self._ask(partial(self._engine.spell, texts, special=special))

    async def decode(
        self, rows: Sequence[Sequence[int]], *, skip_special: bool
    ) -> list[str] | EmbedServeError:
        """The texts that rows of token ids stand for."""
        return await self._ask(partial(self._engine.decode, rows, skip_special=skip_special))

    async def _ask(self, question: Callable[[], _T]) -> _T | EmbedServeError:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, question)
        except EmbedServeError as error:
            return error
        except Exception as error:
            logger.exception("The tokenizer failed")
            return InferenceError(f"The tokenizer failed: {type(error).__name__}.")
