"""Tokenizing and decoding for callers that want tokens, not vectors."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import TypeVar

from serve_app.engines.base import Tokenizer
from serve_app.errors import EmbedServeError, InferenceError
from serve_app.inputs import Input
from serve_app.types import Tokenization

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
_InputT = TypeVar("_InputT", bound=Input)
#: Characters in one run of the tokenizer: another call waits for a few milliseconds.
_MAX_RUN_CHARS = 65536


def tokenizer_runs(inputs: Sequence[_InputT]) -> Iterator[Sequence[_InputT]]:
    """Splits inputs, in order, so that other calls can use the tokenizer between the parts."""
    start = characters = 0
    for end, text in enumerate(inputs, 1):
        characters += len(text)
        if characters >= _MAX_RUN_CHARS or end == len(inputs):
            yield inputs[start:end]
            start, characters = end, 0


class TokenizerService:
    """Runs a tokenizer outside the event loop."""

    def __init__(self, tokenizer: Tokenizer, executor: Executor) -> None:
        """Creates the service.

        Args:
            tokenizer: the engine's.
            executor: runs the calls. Long texts of embedding requests are tokenized there as
                well, so both kinds of calls share one queue.
        """
        self._tokenizer = tokenizer
        self._executor = executor

    async def tokenize(
        self, texts: Sequence[str], *, add_special_tokens: bool
    ) -> list[Tokenization]:
        """Returns the tokens of each text, not truncated.

        Raises:
            InvalidRequest: see `Tokenizer.tokenize`.
            InferenceError: the tokenizer failed.
        """
        tokenize = partial(self._tokenizer.tokenize, add_special_tokens=add_special_tokens)
        rows = list[Tokenization]()
        for run in tokenizer_runs(texts):
            rows += await self._run(partial(tokenize, run))
        return rows

    async def decode(
        self, rows: Sequence[Sequence[int]], *, skip_special_tokens: bool
    ) -> list[str]:
        """Returns the text of each row of token ids.

        Raises:
            InvalidRequest: see `Tokenizer.decode`.
            InferenceError: the tokenizer failed.
        """
        return await self._run(
            partial(self._tokenizer.decode, rows, skip_special_tokens=skip_special_tokens)
        )

    async def _run(self, call: Callable[[], _T]) -> _T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, call)
        except EmbedServeError:
            raise
        except Exception as error:
            logger.exception("The tokenizer failed")
            raise InferenceError(f"The tokenizer failed: {type(error).__name__}.") from error
