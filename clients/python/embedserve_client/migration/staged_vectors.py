"""New vectors in a directory next to an index of files, until they are complete.

| file | content |
|---|---|
| `vectors.npy.partial` | the vectors in the order of the rows, while the migration runs |
| `vectors.npy.journal` | how many of them are durable, their space, and what they were made from |
| `vectors.npy` | the complete array, shape (rows, dim) |

A run that is killed loses the vectors after its last save; the next one computes them again.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from embedserve_client.errors import FileError
from embedserve_client.files.journal import Journal, Progress
from embedserve_client.files.sink import NpySink
from embedserve_client.migration.store import Pin
from embedserve_client.vectors import Float32


class StagedVectors:
    """The new vectors of an index."""

    def __init__(self, index: Path, source: dict[str, Any], *, restart: bool) -> None:
        """Opens what an interrupted run has left, for one program at a time.

        Args:
            index: the file or directory of the index.
            source: properties of its rows, which must be the same when a run resumes.
            restart: discards the vectors of an interrupted run.

        Raises:
            FileError: another program migrates the index, or the files can't be used.
        """
        self._index = index
        self._options: dict[str, Any] = {}
        self.directory = index.with_name(f"{index.name}.migration")
        self._vectors = self.directory / "vectors.npy"
        self._sink: NpySink | None = None
        self._lock = FileLock(f"{self.directory}.lock", timeout=0, thread_local=False)
        with self._write_errors():
            try:
                self._lock.acquire()
            except Timeout:
                raise FileError(f"Another program migrates {index}.") from None
        if restart:
            self.remove()
        self._journal = Journal(self._vectors, {"rows": source})
        try:
            self._progress = self._journal.read() or Progress()
        except FileError:
            self._unlock()
            raise

    @property
    def done(self) -> int:
        """The number of vectors."""
        return self._progress.records

    @property
    def pin(self) -> Pin | None:
        """What they have in common; None: there are none."""
        progress = self._progress
        if not progress.records or progress.space is None:
            return None
        state = progress.sink_state
        return Pin(progress.space, progress.model, int(state["dim"]), dict(state["options"]))

    @property
    def is_complete(self) -> bool:
        """Whether `array` may be called."""
        return self._vectors.exists()

    def begin(self, pin: Pin) -> None:
        """Opens the files for more vectors.

        Raises:
            FileError: they can't be written.
        """
        self._options = pin.options
        with self._write_errors():
            self.directory.mkdir(exist_ok=True)
            self._progress.space, self._progress.model = pin.space, pin.model
            if not self.is_complete:
                self._sink = NpySink(self._vectors, self._progress.sink_state)

    def write(self, vectors: Float32) -> None:
        """Appends vectors, shape (n, dim)."""
        assert self._sink is not None, "`write` before `begin`, or after the last row. A bug."
        with self._write_errors():
            self._sink.write([], vectors)
        self._progress.records += len(vectors)

    def save(self) -> None:
        """Makes the vectors durable."""
        if self._sink is None or not self._progress.records:
            return
        with self._write_errors():
            self._progress.sink_state = {**self._sink.save(), "options": self._options}
            self._journal.write(self._progress)

    def finish(self) -> None:
        """Marks the vectors as complete."""
        if self._sink is not None:
            self.save()
            with self._write_errors():
                self._sink.finish({})
            self._sink = None

    def array(self) -> Float32:
        """Returns the complete vectors, shape (rows, dim), mapped from their file.

        Raises:
            FileError: the file can't be read.
        """
        try:
            vectors: Float32 = np.load(self._vectors, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise FileError(
                f"Can't read {self._vectors}: {error}. Start over with --restart."
            ) from None
        return vectors

    def remove(self) -> None:
        """Removes the files, after the vectors are in the index."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def close(self) -> None:
        """Closes the files; saved vectors stay."""
        if self._sink is not None:
            self._sink.close()
        if not self.is_complete and not self._progress.sink_state:
            shutil.rmtree(self.directory, ignore_errors=True)  # no run could resume from it
        self._unlock()

    def _unlock(self) -> None:
        self._lock.release()
        Path(self._lock.lock_file).unlink(missing_ok=True)

    @contextmanager
    def _write_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise FileError(f"Can't write next to {self._index}: {error}") from None
