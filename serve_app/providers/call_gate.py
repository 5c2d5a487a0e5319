"""Whether calls of a provider may start: its rate limit, and a circuit breaker."""

import logging
import math
import random
from collections.abc import Callable

from serve_app.breaker import Breaker
from serve_app.errors import EmbedServeError, Overloaded, Unavailable, UpstreamError

logger = logging.getLogger(__name__)

#: Failures in a row that open the breaker, and how often a single call then tries the provider.
_MAX_FAILURES = 5
_PROBE_EVERY_S = 5.0
#: The first backoff before a retry; each further one is twice as long.
_MIN_BACKOFF_S = 0.5
_MAX_BACKOFF_S = 16.0
#: After this time one call is made even if the provider has asked for a longer pause.
_MAX_PAUSE_S = 600.0


class CallGate:
    """The breaker of one model, and the time until which its provider wants no calls.

    Unavailable providers and wrong replies count as failures. A rate limit or a refused text
    doesn't: the provider works. While the breaker is open, one call at a time tries the provider.
    """

    def __init__(
        self,
        model: str,
        clock: Callable[[], float],
        *,
        on_pause: Callable[[], None],
        waits: bool = True,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Creates a gate that is open to calls.

        Args:
            model: names the model in messages.
            clock: monotonic time in seconds.
            on_pause: called when the provider wants no calls for some time.
            waits: whether requests wait for that time. False: another model answers them.
            jitter: returns a random number of at least 0 and below 1.
        """
        self._model = model
        self._clock = clock
        self._on_pause = on_pause
        self._waits = waits
        self._jitter = jitter
        self._breaker = Breaker(
            max_failures=_MAX_FAILURES, probe_every_s=_PROBE_EVERY_S, clock=clock
        )
        self._probing = False
        self._reason = ""
        self.paused_until_s = -math.inf  #: the provider wants no calls before
        #: The error of requests that can't wait so long.
        self.pause_error: Overloaded | Unavailable = Overloaded("")

    @property
    def failure(self) -> Unavailable | None:
        """The error of requests while the breaker is open; None while it is closed."""
        if not self._breaker.is_open:
            return None
        return Unavailable(
            f"The provider of {self._model} fails: {self._reason} It is tried again every "
            f"{_PROBE_EVERY_S:g} s.",
            math.ceil(_PROBE_EVERY_S),
        )

    def refusal(self, deadline_s: float) -> EmbedServeError | None:
        """Returns why texts can't be sent before a deadline; None if they may be queued."""
        if self._breaker.is_open and not self.may_start:
            return self.failure
        left_s = self.paused_until_s - self._clock()
        if left_s <= 0 or (self._waits and deadline_s > self.paused_until_s):
            return None
        return type(self.pause_error)(str(self.pause_error), math.ceil(left_s))

    @property
    def may_start(self) -> bool:
        """Whether the breaker lets a call start."""
        return not self._breaker.is_open or (self._breaker.probe_due() and not self._probing)

    def start(self) -> bool:
        """Records that a call starts, and returns whether it is the probe of an open breaker."""
        self._probing = self._breaker.is_open
        return self._probing

    def end_probe(self) -> None:
        """Records that the probe has ended without a result."""
        self._probing = False

    def record(self, error: EmbedServeError | None, *, is_probe: bool) -> None:
        """Records how a call ended.

        Args:
            error: of the call; None: it succeeded.
            is_probe: whether the call is the probe, which decides alone.
        """
        failed = isinstance(error, Unavailable | UpstreamError)
        was_open = self._breaker.is_open
        if failed:
            self._reason = str(error)
        if is_probe:
            self._probing = False
            self._breaker.record_probe(not failed)
        elif failed:
            self._breaker.record_failure()
        elif error is None:
            self._breaker.record_success()
        if self._breaker.is_open and not was_open:
            logger.warning("The provider of %s gets no more calls: %s", self._model, self._reason)
        elif was_open and not self._breaker.is_open:
            logger.warning("The provider of %s works again.", self._model)

    def backoff_s(self, error: EmbedServeError, attempt: int) -> float:
        """Returns the pause before a retry: what the provider asks for, or exponential backoff.

        Args:
            error: of the call.
            attempt: number of retries before.
        """
        asked_s = error.retry_after_s if isinstance(error, Overloaded | Unavailable) else None
        if asked_s:  # never earlier; later at random, since others wait as well
            return asked_s + min(asked_s * 0.1, 1.0) * self._jitter()
        backoff_s = min(_MIN_BACKOFF_S * 2.0**attempt, _MAX_BACKOFF_S)
        return backoff_s * (0.5 + self._jitter() / 2)

    def pause(self, error: Overloaded | Unavailable, until_s: float) -> None:
        """Lets no call start before a time; requests that can't wait get the error."""
        until_s = min(until_s, self._clock() + _MAX_PAUSE_S)
        if until_s > self.paused_until_s:
            self.paused_until_s, self.pause_error = until_s, error
            self._on_pause()
