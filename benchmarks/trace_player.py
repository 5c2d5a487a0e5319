"""Sends the texts of a trace to a service at their times, and measures how long each one waits."""

import asyncio
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .connection import Connection
from .target import HttpTarget

_INFERENCE = re.compile(rb"infer;dur=([\d.]+)")
_QUEUE = re.compile(rb"queue;dur=([\d.]+)")
#: As much of the body of a failure is kept.
_MAX_BODY_BYTES = 300
_SYLLABLES = ("ba", "de", "fi", "go", "hu", "ka", "le", "mi", "no", "pu")


@dataclass(frozen=True, slots=True)
class Playback:
    """What the client measured for each text of a trace; arrays of shape (n,)."""

    started_s: float  #: Unix time of the trace's start
    latency_s: npt.NDArray[np.float64]  #: from the time of the text to its reply; NaN: it failed
    inference_s: npt.NDArray[np.float64]  #: duration of the text's batch; NaN: it failed
    queue_s: npt.NDArray[np.float64]  #: time in the replica's queue; NaN: it failed
    lag_s: npt.NDArray[np.float64]  #: delay caused by the client
    #: Time of each text that failed; status code and body, or the name of the exception.
    failures: tuple[tuple[float, str], ...]

    @property
    def waiting_s(self) -> npt.NDArray[np.float64]:
        """The latency without the model."""
        return self.latency_s - self.inference_s


class _TimedConnection(Connection):
    """A connection that reads how long its text was queued and computed, and the last body."""

    inference_s = queue_s = 0.0
    body = b""

    def on_header(self, name: bytes, value: bytes) -> None:
        """Implements the `httptools` protocol."""
        if name.lower() != b"server-timing":
            return
        if match := _INFERENCE.search(value):
            self.inference_s = float(match[1]) / 1e3
        if match := _QUEUE.search(value):
            self.queue_s = float(match[1]) / 1e3

    def on_body(self, body: bytes) -> None:
        """Implements the `httptools` protocol: a part of the body."""
        super().on_body(body)
        self.body = body


class _Player:
    def __init__(
        self, arrival_s: Sequence[float], texts: Sequence[str], target: HttpTarget
    ) -> None:
        self._arrival_s = arrival_s
        self._requests = [target.encode_request([text]) for text in texts]
        self._address = target.address
        self._idle: list[_TimedConnection] = []
        n = len(texts)
        self._latency_s, self._inference_s = np.full(n, np.nan), np.full(n, np.nan)
        self._queue_s = np.full(n, np.nan)
        self._lag_s = np.zeros(n)
        self._failures: list[tuple[float, str]] = []

    async def run(self) -> Playback:
        started_s, start = time.time(), time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for i, arrival_s in enumerate(self._arrival_s):
                due = start + arrival_s
                if (delay_s := due - time.perf_counter()) > 0:
                    await asyncio.sleep(delay_s)
                self._lag_s[i] = max(time.perf_counter() - due, 0.0)
                tasks.create_task(self._send(i, due))
        for connection in self._idle:
            connection.close()
        return Playback(
            started_s,
            self._latency_s,
            self._inference_s,
            self._queue_s,
            self._lag_s,
            tuple(self._failures),
        )

    async def _send(self, i: int, due: float) -> None:
        try:
            connection = self._idle.pop() if self._idle else None
            if connection is None or not connection.is_open:
                connection = await _TimedConnection.open(self._address)
            response = await connection.send(self._requests[i])
        except OSError as error:
            self._failures.append((self._arrival_s[i], type(error).__name__))
            return
        self._idle.append(connection)
        if response.status != 200:
            body = connection.body[:_MAX_BODY_BYTES].decode(errors="replace")
            self._failures.append((self._arrival_s[i], f"{response.status} {body}"))
            return
        self._latency_s[i] = time.perf_counter() - due
        self._inference_s[i], self._queue_s[i] = connection.inference_s, connection.queue_s


async def play(
    arrival_s: Sequence[float], tokens: Sequence[int], target: HttpTarget, *, seed: int = 0
) -> Playback:
    """Plays a trace in an open loop: each text is sent at its time, whatever the service does.

    Args:
        arrival_s: time of each text from the start; ascending.
        tokens: of each text, which is sent as so many words. No two texts are equal.
        target: an HTTP server.
        seed: of the words.
    """
    rng = random.Random(seed)
    texts = [_text(i, n, rng) for i, n in enumerate(tokens)]
    return await _Player(arrival_s, texts, target).run()


def _text(number: int, words: int, rng: random.Random) -> str:
    """Returns a text that no other number has."""
    others = ("".join(rng.choices(_SYLLABLES, k=2)) for _ in range(words - 1))
    return " ".join([f"text{number}", *others])
