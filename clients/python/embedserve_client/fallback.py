"""The local fallback: a circuit breaker that routes requests to the service or a local model.

After a failure the circuit is open: requests are computed locally for a pause, which doubles with
each further failure. When the pause ends, one caller probes the service while all others continue
locally. The class does no I/O: callers ask for a route and report the outcome.
"""

import logging
import time
from collections.abc import Callable
from typing import Literal

from embedserve_client.errors import (
    EmbedError,
    NetworkError,
    RequestTimeoutError,
    ServerError,
    SpaceMismatchError,
)
from embedserve_client.fork_safe_lock import ForkSafeLock
from embedserve_client.local_model import LocalModel
from embedserve_client.retry import log_name
from embedserve_client.space import Space

logger = logging.getLogger(__name__)

#: `probe`: check the health of the service, then call `record_success` or `record_failure`.
Route = Literal["service", "probe", "local"]

_FIRST_PAUSE_S = 1.0
_MAX_PAUSE_S = 30.0
#: Keeps `2**failures` small; the pause is at its maximum by then.
_MAX_DOUBLINGS = 8


class Fallback:
    """The circuit breaker of one client. Thread-safe."""

    #: Whether no request goes to the service.
    is_exclusive = False

    def __init__(self, model: LocalModel, clock: Callable[[], float] = time.monotonic) -> None:
        """Creates a closed circuit.

        Args:
            model: computes vectors while the service is unavailable.
            clock: the time in seconds.
        """
        self.model = model
        self._clock = clock
        self._lock = ForkSafeLock()
        self._failures = 0
        self._probe_at = 0.0

    def route(self) -> Route:
        """Returns the route of the next request."""
        with self._lock:
            if self._failures == 0:
                return "service"
            if self._clock() < self._probe_at:
                return "local"
            self._open()  # so that concurrent callers don't probe as well
            return "probe"

    def record_failure(self, error: EmbedError | None = None) -> None:
        """Opens the circuit: the service was unavailable.

        Args:
            error: the failure; None: a check of its health failed.
        """
        with self._lock:
            was_closed = self._failures == 0
            if was_closed or self._clock() >= self._probe_at:
                self._open()
        if was_closed:
            reason = "unhealthy" if error is None else log_name(error)
            logger.info(
                "The service is unavailable (%s). %s computes until it is back.", reason, self.model
            )

    def record_success(self) -> None:
        """Closes the circuit: the service responded."""
        with self._lock:
            was_open = self._failures > 0
            self._failures = 0
        if was_open:
            logger.info("The service is back.")

    def check_space(self, expected: Space | None) -> None:
        """Checks that local vectors are comparable with those of the service.

        Raises:
            SpaceMismatchError: they aren't.
            LocalModelError: the files of the local model can't be read.
        """
        if expected is not None and not self.model.space.is_comparable_to(expected):
            raise SpaceMismatchError(
                f"The service is unavailable, and {self.model} can't replace it: its vectors are "
                f"in space {self.model.space}, those of the service in {expected}. Use the same "
                "model as the service, and the same `max_tokens` if it is set there."
            )

    def _open(self) -> None:
        pause_s = min(_MAX_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(self._failures, _MAX_DOUBLINGS))
        self._failures += 1
        self._probe_at = self._clock() + pause_s


class LocalOnly(Fallback):
    """Routes every request to the local model."""

    is_exclusive = True

    def route(self) -> Route:
        """Returns `local`."""
        return "local"


def is_unavailable(error: EmbedError) -> bool:
    """Returns whether an error means that the service is down, not that it rejected the request."""
    return isinstance(error, NetworkError | RequestTimeoutError | ServerError)
