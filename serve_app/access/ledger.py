"""The ledger: what each key has used of each model on each day, and what it cost."""

from datetime import date
from typing import NamedTuple, Protocol


class Usage(NamedTuple):
    """Usage that is added up. All fields are integers, so sums are exact."""

    requests: int = 0
    texts: int = 0
    computed_texts: int = 0
    tokens: int = 0
    computed_tokens: int = 0
    nano_usd: int = 0
    saved_nano_usd: int = 0

    def plus(self, other: "Usage") -> "Usage":
        """Returns the fieldwise sum."""
        return Usage(*(a + b for a, b in zip(self, other, strict=True)))


class LedgerRow(NamedTuple):
    """The usage of one model by one key on one day."""

    day: date  #: UTC
    model: str
    key: str  #: name of the API key; empty: requests without a key
    usage: Usage


class Ledger(Protocol):
    """Adds up usage. Belongs to one event loop."""

    def open(self) -> None:
        """Prepares for requests. Idempotent; call it in the event loop."""
        ...

    def add(self, model: str, key: str, usage: Usage) -> None:
        """Adds the usage of one request, now. Never raises, and never waits for a server."""
        ...

    def month_nano_usd(self, key: str) -> int:
        """Returns what a key has cost this month (UTC), as far as this process knows."""
        ...

    async def rows(self, since: date | None = None) -> list[LedgerRow]:
        """Returns the usage of all processes, by day, model and key; all that is known if None."""
        ...

    async def close(self) -> None:
        """Writes what is pending and releases all resources. Never raises."""
        ...
