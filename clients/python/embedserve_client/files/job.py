"""A job that embeds a file: records → batches → concurrent requests → vectors in order → sink.

Memory is bounded by a few batches. The job periodically saves the sink together with its offset in
the source. After an interruption the next run discards everything after the last save and resumes
there, so no text is lost and none is written twice.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, Unpack

import numpy as np
from filelock import FileLock, Timeout

from embedserve_client.base import EmbedOptions
from embedserve_client.errors import FileError, HTTPError, SpaceMismatchError
from embedserve_client.files.journal import Journal, Progress
from embedserve_client.files.sink import STDOUT, Sink, open_sink, partial_path
from embedserve_client.files.source import STDIN, Record, Source
from embedserve_client.in_order import in_order
from embedserve_client.prefetch import Prefetcher
from embedserve_client.space import Space
from embedserve_client.vectors import Vectors

OnEmpty = Literal["error", "skip"]

_SAVE_INTERVAL_S = 2.0
#: Bounds the rows that a Parquet sink buffers between saves.
_SAVE_INTERVAL_RECORDS = 16384


class AsyncEmbedder(Protocol):
    """Computes vectors: an `AsyncClient` or an `AsyncLocalModel`."""

    async def embed(self, texts: Sequence[str], **options: Unpack[EmbedOptions]) -> Vectors:
        """Embeds texts; returns shape (n, dim)."""
        ...

    async def close(self) -> None:
        """Closes connections."""
        ...


@dataclass(frozen=True, slots=True)
class FileJob:
    """The input, output and options of a job."""

    source: Source
    target: str  #: a path, or `-` for standard output
    options: EmbedOptions
    batch_size: int = 256
    concurrency: int = 4
    on_empty: OnEmpty = "error"
    restart: bool = False  #: discards the progress of an interrupted run
    overwrite: bool = False  #: replaces an existing target


class _Batch(NamedTuple):
    records: list[Record]  #: the records with a text
    size: int  #: including skipped records
    next_offset: int
    last_number: int


class JobRun:
    """One run of a job."""

    def __init__(
        self, job: FileJob, embedder: AsyncEmbedder, on_progress: Callable[[Progress], None]
    ) -> None:
        """Opens the target and reads the progress of an interrupted run.

        Args:
            job: the job.
            embedder: computes the vectors.
            on_progress: called after each batch.

        Raises:
            FileError: the target exists, is in use, or can't be resumed.
        """
        self._job = job
        self._embedder = embedder
        self._on_progress = on_progress
        self._saved_at = time.monotonic()
        self._unsaved = 0
        self._write_failed = False
        self._journal: Journal | None = None
        self._lock: FileLock | None = None
        #: Updated after each batch.
        self.progress = Progress()
        if job.target != STDOUT:
            self._open_target(Path(job.target))
        self._sink: Sink = open_sink(job.target, job.source, self.progress.sink_state)
        self.resumed_at = self.progress.records

    def _open_target(self, target: Path) -> None:
        job = self._job
        lock = FileLock(target.with_name(f"{target.name}.lock"), timeout=0, thread_local=False)
        try:
            lock.acquire()
        except Timeout:
            raise FileError(f"Another program is writing {target}.") from None
        except OSError as error:
            raise FileError(f"Can't write {target}: {error}") from None
        self._lock = lock
        if target.exists() and not job.overwrite:
            raise FileError(f"{target} exists. Use --overwrite, or another output file.")
        if job.source.name != STDIN:
            options = {name: value for name, value in job.options.items() if name != "timeout_s"}
            identity = {
                "source": job.source.fingerprint(),
                "options": options,
                "on_empty": job.on_empty,
            }
            self._journal = Journal(target, identity)
            if job.restart:
                self._journal.remove()
            self.progress = self._journal.read() or Progress()

    async def run(self) -> Progress:
        """Embeds the remaining records.

        Raises:
            EmbedError: the run failed; saved vectors stay, and the next run resumes.
        """
        batches = Prefetcher(self._batches())
        try:
            async with aclosing(in_order(batches, self._embed, self._job.concurrency)) as results:
                async for batch, vectors in results:
                    self._write(batch, vectors)
            self._finish()
        except BaseException:
            if not self._write_failed:
                with suppress(FileError):  # the first error is the one to report
                    self._save()
            raise
        finally:
            batches.close()
            self._close()
        return self.progress

    def _batches(self) -> Iterator[_Batch]:
        records = self._job.source.records(self.progress.offset, self.progress.record_number)
        while batch := list(islice(records, self._job.batch_size)):
            with_text = [record for record in batch if record.text]
            if len(with_text) < len(batch) and self._job.on_empty == "error":
                empty = next(record for record in batch if not record.text)
                raise FileError(
                    f"{self._job.source.name}, record {empty.number}, is empty, and an empty text "
                    "has no vector. Skip such records with --on-empty skip."
                )
            yield _Batch(with_text, len(batch), batch[-1].next_offset, batch[-1].number)

    async def _embed(self, batch: _Batch) -> Vectors | None:
        if not batch.records:
            return None
        texts = [record.text for record in batch.records]
        try:
            return await self._embedder.embed(texts, **self._job.options)
        except HTTPError as error:
            first, last = batch.records[0].number, batch.records[-1].number
            error.args = (
                f"{error.args[0]} Positions are relative to the batch of records {first}-{last} of "
                f"{self._job.source.name}.",
            )
            raise

    def _write(self, batch: _Batch, vectors: Vectors | None) -> None:
        progress = self.progress
        if vectors is not None:
            self._check_space(vectors)
            with self._map_write_errors():
                self._sink.write(batch.records, np.asarray(vectors))
            progress.rows += len(vectors)
            progress.truncated += len(vectors.info.truncated)
        progress.records += batch.size
        progress.skipped += batch.size - len(batch.records)
        progress.offset, progress.record_number = batch.next_offset, batch.last_number
        self._unsaved += batch.size
        self._on_progress(progress)
        is_due = time.monotonic() - self._saved_at > _SAVE_INTERVAL_S
        if is_due or self._unsaved >= _SAVE_INTERVAL_RECORDS:
            self._save()

    def _check_space(self, vectors: Vectors) -> None:
        """Checks that all vectors of the file are comparable, including those of earlier runs."""
        expected, space = self.progress.space, vectors.space
        if expected is None and space is not None:
            self.progress.space = str(space)
            self.progress.model = vectors.info.model
        elif expected is not None and (
            space is None or not space.is_comparable_to(Space.parse(expected))
        ):
            raise SpaceMismatchError(
                f"Earlier vectors are in space {expected}, these in {space or 'unknown'}: they "
                "can't share a file. Start over with --restart."
            )

    def _save(self) -> None:
        with self._map_write_errors():
            self.progress.sink_state = self._sink.save()
            if self._journal is not None and self.progress.records:
                self._journal.write(self.progress)
        self._saved_at, self._unsaved = time.monotonic(), 0

    def _finish(self) -> None:
        if not self.progress.rows:
            raise FileError(f"{self._job.source.name} holds no text.")
        metadata = {"space": self.progress.space or "", "model": self.progress.model}
        with self._map_write_errors():
            self._sink.finish(metadata)
            if self._journal is not None:
                self._journal.remove()

    @contextmanager
    def _map_write_errors(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            self._write_failed = True  # only the last save is intact
            raise FileError(f"Can't write {self._job.target}: {error}") from None

    def _close(self) -> None:
        self._sink.close()
        if self._lock is None:
            return
        if self._journal is None or not self.progress.records:
            _remove(partial_path(Path(self._job.target)))  # no run could resume from it
        self._lock.release()
        Path(self._lock.lock_file).unlink(missing_ok=True)

    def summary(self, seconds: float) -> dict[str, Any]:
        """Returns the result of the run as a JSON object."""
        records = self.progress.records - self.resumed_at
        return {
            "output": self._job.target,
            "rows": self.progress.rows,
            "skipped": self.progress.skipped,
            "truncated": self.progress.truncated,
            "space": self.progress.space,
            "model": self.progress.model,
            "resumed_at": self.resumed_at,
            "seconds": round(seconds, 3),
            "texts_per_s": round(records / seconds, 1) if seconds else 0.0,
        }


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
