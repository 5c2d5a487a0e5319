"""What a process has answered since its start or the last reset."""

from typing import NamedTuple


class Totals(NamedTuple):
    """Totals of answered requests since the start or the last reset."""

    requests: float = 0  #: failed and rejected requests included
    failed: float = 0  #: requests whose status isn't 200
    texts: float = 0  #: of successful requests
    cached_texts: float = 0  #: served from the cache
    tokens: float = 0  #: of successful requests
    seconds: float = 0.0  #: sum of the durations of requests
    nano_usd: float = 0  #: cost in billionths of a US dollar
    saved_nano_usd: float = 0  #: cost of what was cached, or computed for another request

    def plus(self, other: "Totals") -> "Totals":
        """Returns the fieldwise sum."""
        return Totals(*(a + b for a, b in zip(self, other, strict=True)))

    def minus(self, other: "Totals") -> "Totals":
        """Returns the fieldwise difference."""
        return Totals(*(a - b for a, b in zip(self, other, strict=True)))
