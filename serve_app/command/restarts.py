"""Counts the failures of a process, and decides whether and when it starts again."""

from dataclasses import dataclass

_MAX_DELAY_S = 30.0
#: After this time a failure is the first one in a row.
_STABLE_S = 60.0


@dataclass(slots=True)
class Restarts:
    """Restarts with exponential back-off, up to a number of failures in a row."""

    maximum: int = 5  #: failures in a row after which the process stays down
    first_delay_s: float = 1.0  #: before the first restart; doubles with each failure, up to 30 s
    failures: int = 0  #: in a row

    def add_failure(self, uptime_s: float) -> None:
        """Counts a failure.

        Args:
            uptime_s: how long the process ran before it.
        """
        self.failures = 1 if uptime_s > _STABLE_S else self.failures + 1

    @property
    def exhausted(self) -> bool:
        """Whether the process has failed too often in a row."""
        return self.failures > self.maximum

    @property
    def delay_s(self) -> float:
        """The delay before the next restart."""
        return min(_MAX_DELAY_S, self.first_delay_s * 2.0 ** (self.failures - 1))

    def __str__(self) -> str:
        return f"{self.failures} of {self.maximum}, in {self.delay_s:g} s"
