"""The ledger: what each key has used of each model on each day, and what it cost."""

from collections import Counter
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import NamedTuple, Protocol

from serve_app.cost import Cost
from serve_app.results import Result


class Usage(NamedTuple):
    """Usage that is added up. All fields are integers, so sums are exact."""

    requests: int = 0
    texts: int = 0
    computed_texts: int = 0  #: inputs of the model; a text in chunks is several
    tokens: int = 0
    computed_tokens: int = 0
    nano_usd: int = 0
    saved_nano_usd: int = 0

    @classmethod
    def of_request(cls, result: Result, cost: Cost) -> "Usage":
        """Returns the usage of one request, from its result."""
        return cls(
            1,
            sum(len(part.token_counts) for part in result.parts),
            cost.computed_texts,
            result.billed_tokens,
            cost.computed_tokens,
            cost.nano_usd,
            cost.saved_nano_usd,
        )

    def plus(self, other: "Usage") -> "Usage":
        """Returns the fieldwise sum."""
        return Usage(*(a + b for a, b in zip(self, other, strict=True)))

    def minus(self, other: "Usage") -> "Usage":
        """Returns the fieldwise difference."""
        return Usage(*(a - b for a, b in zip(self, other, strict=True)))


class LedgerRow(NamedTuple):
    """The usage of one model by one key on one day."""

    day: date  #: UTC
    model: str
    key: str  #: name of the API key; empty: requests without a key
    usage: Usage


class Ledger(Protocol):
    """Adds up usage. Belongs to one event loop."""

    def open(self) -> None:
        """Prepares for requests. Idempotent; call it in the event loop.

        Raises:
            ConfigurationError: the ledger is misconfigured.
        """
        ...

    def add(self, model: str, key: str, usage: Usage) -> None:
        """Adds the usage of one request, now. Never raises, and never waits for a server."""
        ...

    def month_nano_usd(self, key: str) -> int:
        """Returns what a key has cost this month (UTC), as far as this process knows."""
        ...

    async def rows(self, since: date | None = None) -> list[LedgerRow]:
        """Returns the usage of all processes, by day, model and key; all that is known if None.

        Raises:
            Unavailable: the server that holds it doesn't answer.
        """
        ...

    async def close(self) -> None:
        """Writes what is pending and releases all resources. Never raises."""
        ...


def utc_today() -> date:
    """Returns the current day in UTC."""
    return datetime.now(UTC).date()


class MemoryLedger:
    """The usage of this process, since its start."""

    def __init__(self, today: Callable[[], date] = utc_today) -> None:
        """Creates an empty ledger.

        Args:
            today: returns the current day in UTC.
        """
        self._today = today
        self._usage: dict[tuple[date, str, str], Usage] = {}
        self._months = Counter[tuple[int, int, str]]()

    def open(self) -> None:
        """Does nothing: the ledger needs no preparation."""

    def add(self, model: str, key: str, usage: Usage) -> None:
        """Adds the usage of one request."""
        day = self._today()
        row = (day, model, key)
        self._usage[row] = self._usage.get(row, Usage()).plus(usage)
        self._months[day.year, day.month, key] += usage.nano_usd

    def month_nano_usd(self, key: str) -> int:
        """Returns what a key has cost this month (UTC) in this process."""
        day = self._today()
        return self._months[day.year, day.month, key]

    async def rows(self, since: date | None = None) -> list[LedgerRow]:
        """Returns the usage of this process, by day, model and key; all of it if None."""
        return [
            LedgerRow(*row, usage)
            for row, usage in sorted(self._usage.items())
            if since is None or row[0] >= since
        ]

    async def close(self) -> None:
        """Does nothing: the usage of a process ends with it."""
