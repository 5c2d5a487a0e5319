"""What stores of files have in common: new vectors in the order of the rows, until the switch."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import islice

from embedserve_client.files.source import Source
from embedserve_client.migration.staged_vectors import StagedVectors
from embedserve_client.migration.store import Pin, Row
from embedserve_client.migration.texts import read_texts
from embedserve_client.vectors import Float32


class FileStore(ABC):
    """A store whose rows have positions, and whose new vectors are staged next to it."""

    size: int

    def __init__(self, staged: StagedVectors, texts: Source | None) -> None:
        """Continues after the staged vectors.

        Args:
            staged: those of an interrupted run, or none.
            texts: a text for each row; None: the store has them.
        """
        self._staged = staged
        self._texts = texts
        self.done, self.pin = staged.done, staged.pin

    @abstractmethod
    def _own_texts(self, done: int) -> Iterator[str]:
        """Yields the texts of the store after the first `done` rows."""

    def begin(self, pin: Pin) -> None:
        """Opens the file of new vectors."""
        self.pin = pin
        self._staged.begin(pin)

    def rows(self) -> Iterator[Row]:
        """Yields the rows after the last new vector."""
        done = self._staged.done
        texts = (
            self._own_texts(done)
            if self._texts is None
            else read_texts(self._texts, self.size, done)
        )
        for i, text in enumerate(texts, done):
            yield Row(i, text)

    def write(self, rows: Sequence[Row], vectors: Float32) -> int:
        """Appends vectors, in the order of the rows."""
        self._staged.write(vectors)
        return len(rows)

    def save(self) -> None:
        """Makes the new vectors durable."""
        self._staged.save()

    def close(self) -> None:
        """Closes the files."""
        self._staged.close()

    def _texts_of(self, rows: set[int]) -> dict[int, str]:
        """Returns the texts of some rows."""
        texts = (
            self._own_texts(0)
            if self._texts is None
            else (record.text for record in self._texts.records())
        )
        wanted = islice(texts, max(rows, default=-1) + 1)
        return {i: text for i, text in enumerate(wanted) if i in rows}
