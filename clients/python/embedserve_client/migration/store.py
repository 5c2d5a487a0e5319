"""What a migration needs of an index, whatever holds it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from embedserve_client.migration.agreement import Sample
from embedserve_client.space import Space
from embedserve_client.vectors import Float32


class Row(NamedTuple):
    """A row that needs a new vector."""

    key: Any  #: its position, from 0, or its primary key
    text: str  #: empty: it has none


@dataclass(frozen=True, slots=True)
class Pin:
    """What all new vectors have in common; it is kept, so that a run can resume."""

    space: str
    model: str
    dim: int
    options: dict[str, Any] = field(default_factory=dict)  #: those that determine vectors


class Store(Protocol):
    """An index whose vectors are replaced. Readers see the old vectors until `switch`."""

    #: Names the index in messages, without a password.
    name: str
    #: The number of rows.
    size: int
    #: The space of the old vectors; None: unknown.
    space: Space | None
    #: The rows that an interrupted run has finished.
    done: int
    #: What the vectors of an interrupted run have in common; None: there was none.
    pin: Pin | None
    #: Whether a row may be without a vector.
    is_nullable: bool

    def begin(self, pin: Pin) -> None:
        """Prepares the store for new vectors, or for more of them if a run resumes.

        Raises:
            EmbedError: the store can't hold them, or those of the interrupted run differ.
        """
        ...

    def rows(self) -> Iterator[Row]:
        """Yields the rows without a new vector.

        Raises:
            EmbedError: a row can't be read.
        """
        ...

    def write(self, rows: Sequence[Row], vectors: Float32) -> int:
        """Stores new vectors, shape (n, dim), a row of NaN for a row without a text.

        Returns:
            The number of stored vectors. Rows that have changed since they were read are left out.
        """
        ...

    def save(self) -> None:
        """Makes the written vectors durable: another run begins after them."""
        ...

    def sample(self, size: int, seed: int) -> Sample:
        """Returns texts with their old and new vectors, of rows that have both."""
        ...

    def switch(self) -> bool:
        """Replaces the old vectors by the new ones, atomically.

        Returns:
            False: rows without a new vector have been added meanwhile, and nothing was replaced.

        Raises:
            EmbedError: it wasn't possible, and the old vectors are still in use.
        """
        ...

    def summary(self) -> str:
        """Returns what a person should know after the switch; may be empty."""
        ...

    def close(self) -> None:
        """Releases files and connections."""
        ...
