"""Who computes while the service is away, and when the service is asked again.

Knows neither sockets nor threads' waiting: it is asked for a route before each request and told
what came of it. After a failure the service is left alone for a while, longer each time it is
still away; then one caller looks whether it is back, while the others go on locally.
"""

import time
from collections.abc import Callable
from typing import Literal

from embedserve_client.errors import (
    EmbedError,
    NetworkError,
    ServerError,
    SpaceMismatch,
    Timeout,
)
from embedserve_client.local import LocalModel
from embedserve_client.lock import ProcessLock
from embedserve_client.space import Space

#: `probe`: ask the service whether it is healthy, and tell by `back` or `lost`.
Route = Literal["service", "probe", "local"]

_FIRST_PAUSE_S = 1.0
_MOST_PAUSE_S = 30.0
_MOST_DOUBLINGS = 8


class Fallback:
    """Routes of one client's requests. Safe from many threads."""

    def __init__(self, model: LocalModel, now: Callable[[], float] = time.monotonic) -> None:
        """A fall-back to `model`; `now` is a clock in seconds."""
        self.model = model
        self._now = now
        self._lock = ProcessLock()
        self._losses = 0
        self._again_at = 0.0

    def route(self) -> Route:
        """Whom to ask now."""
        with self._lock:
            if self._losses == 0:
                return "service"
            if self._now() < self._again_at:
                return "local"
            self._pause()  # the others needn't look, too
            return "probe"

    def lost(self) -> None:
        """The service didn't answer."""
        with self._lock:
            if self._losses == 0 or self._now() >= self._again_at:
                self._pause()

    def back(self) -> None:
        """The service answered."""
        with self._lock:
            self._losses = 0

    def check(self, expected: Space | None) -> None:
        """Makes sure that local vectors may stand beside those of the service.

        Raises:
            SpaceMismatch: they may not.
            LocalModelError: the local model's files can't be read.
        """
        if expected is not None and not self.model.space.mixes_with(expected):
            raise SpaceMismatch(
                f"The service is away, and {self.model} can't stand in: its vectors are of the "
                f"space {self.model.space}, the service's of {expected}. Name the model that the "
                "service has, and its `max_tokens` where they were set."
            )

    def _pause(self) -> None:
        pause_s = min(_MOST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(self._losses, _MOST_DOUBLINGS))
        self._losses += 1
        self._again_at = self._now() + pause_s


def is_away(error: EmbedError) -> bool:
    """Whether an error means that the service isn't there, not that it refused."""
    return isinstance(error, NetworkError | Timeout | ServerError)
