"""A provider whose calls do what a test says, and a clock that moves when texts wait."""

import asyncio
from collections import deque
from collections.abc import Sequence

import numpy as np

from serve_app.errors import EmbedServeError, InvalidRequest
from serve_app.providers.base import BatchLimits, EmbeddedTexts
from tests.fakes import fake_vector


class ScriptedProvider:
    """Embeds with `fake_vector`; one token for each character.

    A call fails if one of its texts contains "boom".

    Attributes:
        calls: the texts of each call.
        prompts: the prompt of each call.
        errors: raised by the next calls, one each; None: the call succeeds.
        counts_tokens: whether `count_tokens` returns numbers.
        tells_tokens: whether replies have a total.
    """

    def __init__(self, max_texts: int = 1000, max_tokens: int = 100_000) -> None:
        self.limits = BatchLimits(max_texts, max_tokens)
        self.versions = {"scripted": "1"}
        self.calls: list[list[str]] = []
        self.prompts: list[str] = []
        self.timeouts_s: list[float] = []
        self.errors: deque[Exception | None] = deque()
        self.counts_tokens = True
        self.tells_tokens = True
        self.in_flight = self.max_in_flight = self.cancelled = 0
        self.is_closed = False
        self._open = asyncio.Event()
        self._open.set()

    def hold(self) -> None:
        """Lets further calls wait until `release`."""
        self._open.clear()

    def release(self) -> None:
        self._open.set()

    async def embed(self, texts: Sequence[str], prompt: str, timeout_s: float) -> EmbeddedTexts:
        self.calls.append([*texts])
        self.prompts.append(prompt)
        self.timeouts_s.append(timeout_s)
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            await self._open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.in_flight -= 1
        error = self.errors.popleft() if self.errors else None
        if error is not None:
            raise error
        if any("boom" in text for text in texts):
            raise InvalidRequest("The provider refused the texts.", "texts")
        total = sum(map(len, texts)) if self.tells_tokens else None
        return EmbeddedTexts(np.stack([fake_vector(text) for text in texts]), total)

    def count_tokens(self, texts: Sequence[str], prompt: str) -> list[int] | None:
        return [len(text) for text in texts] if self.counts_tokens else None

    async def close(self) -> None:
        self.is_closed = True


class MovingClock:
    """A clock for `clock` and `sleep`: it moves when somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.slept_s: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.now_s += seconds
        await asyncio.sleep(0)


def errors(*values: EmbedServeError | None) -> "deque[Exception | None]":
    return deque(values)
