"""From a file of texts to a file of vectors: bounded memory, in order, to be gone on with.

A few batches are on their way at a time; their vectors are written in the order of the texts, and
every so often what is written is saved together with the place in the source that it reaches to.
Whatever ends the program, the next run cuts off what came after the last save and goes on there:
no text is lost, none is written twice.
"""

import asyncio
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, Unpack

import numpy as np
from filelock import FileLock
from filelock import Timeout as Taken

from embedserve_client.base import How
from embedserve_client.errors import FileError, HTTPError, SpaceMismatch
from embedserve_client.feed import Feed
from embedserve_client.files.journal import Journal, Progress
from embedserve_client.files.sink import Sink, open_sink, partial
from embedserve_client.files.source import STDIN, Record, Source
from embedserve_client.space import Space
from embedserve_client.vectors import Vectors

OnEmpty = Literal["error", "skip"]

_SAVE_S = 2.0
#: What a save of a Parquet file has to hold in memory.
_SAVE_ROWS = 16384


class Embedder(Protocol):
    """Whoever computes: a client, or a model in this process."""

    async def embed(self, texts: Sequence[str], **how: Unpack[How]) -> Vectors:
        """Vectors of texts, shape (n, dim)."""
        ...

    async def close(self) -> None:
        """Lets go of what is open."""
        ...


@dataclass(frozen=True, slots=True)
class FileJob:
    """What is to be done."""

    source: Source
    target: str  #: a file, or `-`
    how: How
    batch_size: int = 256
    concurrency: int = 4
    on_empty: OnEmpty = "error"
    restart: bool = False  #: begins anew, whatever an earlier run left
    overwrite: bool = False  #: replaces a target that is there


class _Batch(NamedTuple):
    records: list[Record]  #: those with a text
    read: int
    at: int
    number: int


class Run:
    """One run of a job; `progress` tells how far it is."""

    def __init__(
        self, job: FileJob, embedder: Embedder, on_progress: Callable[[Progress], None]
    ) -> None:
        """A run.

        Raises:
            FileError: it can't go on from what an earlier run left, or the target is there.
        """
        self._job = job
        self._embedder = embedder
        self._on_progress = on_progress
        self._saved_at = time.monotonic()
        self._unsaved = 0
        self._torn = False
        self._journal: Journal | None = None
        self._lock: FileLock | None = None
        self.progress = Progress()
        if job.target != "-":
            self._open_target(Path(job.target))
        self._sink: Sink = open_sink(job.target, job.source, self.progress.sink)
        self.resumed_at = self.progress.records

    def _open_target(self, target: Path) -> None:
        job = self._job
        lock = FileLock(target.with_name(f"{target.name}.lock"), timeout=0, thread_local=False)
        try:
            lock.acquire()
        except Taken:
            raise FileError(f"Another program is writing {target}.") from None
        except OSError as error:
            raise FileError(f"Can't write {target}: {error}") from None
        self._lock = lock
        if target.exists() and not job.overwrite:
            raise FileError(f"{target} is there already: --overwrite, or name another one.")
        if job.source.name != STDIN:
            how = {name: value for name, value in job.how.items() if name != "timeout_s"}
            told = {"source": job.source.fingerprint(), "how": how, "on_empty": job.on_empty}
            self._journal = Journal(target, told)
            if job.restart:
                self._journal.remove()
            self.progress = self._journal.read() or Progress()

    async def run(self) -> Progress:
        """Does what is left of it.

        Raises:
            EmbedError: what ended it; what is saved stays.
        """
        batches = Feed(self._batches())
        under_way: deque[tuple[_Batch, asyncio.Task[Vectors | None]]] = deque()
        more = True
        try:
            while more or under_way:
                while more and len(under_way) < self._job.concurrency:
                    batch = await batches.next()
                    more = batch is not None
                    if batch is not None:
                        under_way.append((batch, asyncio.create_task(self._embed(batch))))
                if under_way:
                    self._take(under_way[0][0], await under_way[0][1])
                    under_way.popleft()
            self._finish()
        except BaseException:
            for _, task in under_way:
                task.cancel()
            await asyncio.gather(*(task for _, task in under_way), return_exceptions=True)
            if not self._torn:
                with suppress(FileError):  # what ended it is worth more than what that led to
                    self._save()
            raise
        finally:
            batches.close()
            self._close()
        return self.progress

    def _batches(self) -> Iterator[_Batch]:
        records = self._job.source.records(self.progress.at, self.progress.number)
        while taken := list(islice(records, self._job.batch_size)):
            kept = [record for record in taken if record.text]
            if len(kept) < len(taken) and self._job.on_empty == "error":
                empty = next(record for record in taken if not record.text)
                raise FileError(
                    f"{self._job.source.name}, record {empty.number}, is empty, and an empty text "
                    "has no vector. Leave such records out with --on-empty skip."
                )
            yield _Batch(kept, len(taken), taken[-1].at, taken[-1].number)

    async def _embed(self, batch: _Batch) -> Vectors | None:
        if not batch.records:
            return None
        texts = [record.text for record in batch.records]
        try:
            return await self._embedder.embed(texts, **self._job.how)
        except HTTPError as error:
            first, last = batch.records[0].number, batch.records[-1].number
            where = f"records {first} to {last} of {self._job.source.name}"
            error.args = (f"{error.args[0]} It counts from the first of {where}.",)
            raise

    def _take(self, batch: _Batch, vectors: Vectors | None) -> None:
        progress = self.progress
        if vectors is not None:
            self._check_space(vectors)
            with self._writing():
                self._sink.write(batch.records, np.asarray(vectors))
            progress.rows += len(vectors)
            progress.truncated += len(vectors.about.truncated)
        progress.records += batch.read
        progress.skipped += batch.read - len(batch.records)
        progress.at, progress.number = batch.at, batch.number
        self._unsaved += batch.read
        self._on_progress(progress)
        if time.monotonic() - self._saved_at > _SAVE_S or self._unsaved >= _SAVE_ROWS:
            self._save()

    def _check_space(self, vectors: Vectors) -> None:
        """All vectors of one file are of one space, also those of an earlier run."""
        before, now = self.progress.space, vectors.space
        if before is None and now is not None:
            self.progress.space = str(now)
            self.progress.model = vectors.about.model
        elif before is not None and (now is None or not now.mixes_with(Space.parse(before))):
            raise SpaceMismatch(
                f"The vectors before were of the space {before}, these are of {now}: they can't "
                "lie in one file. Begin anew with --restart."
            )

    def _save(self) -> None:
        with self._writing():
            self.progress.sink = self._sink.save()
            if self._journal is not None and self.progress.records:
                self._journal.write(self.progress)
        self._saved_at, self._unsaved = time.monotonic(), 0

    def _finish(self) -> None:
        if not self.progress.rows:
            raise FileError(f"{self._job.source.name} holds no text.")
        about = {"space": self.progress.space or "", "model": self.progress.model}
        with self._writing():
            self._sink.finish(about)
            if self._journal is not None:
                self._journal.remove()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            self._torn = True  # what was saved before is all that is certain
            raise FileError(f"Can't write {self._job.target}: {error}") from None

    def _close(self) -> None:
        self._sink.close()
        if self._lock is None:
            return
        if self._journal is None or not self.progress.records:
            _remove(partial(Path(self._job.target)))  # nothing could be gone on with
        self._lock.release()
        Path(self._lock.lock_file).unlink(missing_ok=True)

    def summary(self, seconds: float) -> dict[str, Any]:
        """What was done, for a person or a program."""
        done = self.progress.records - self.resumed_at
        return {
            "output": self._job.target,
            "rows": self.progress.rows,
            "skipped": self.progress.skipped,
            "truncated": self.progress.truncated,
            "space": self.progress.space,
            "model": self.progress.model,
            "resumed_at": self.resumed_at,
            "seconds": round(seconds, 3),
            "texts_per_s": round(done / seconds, 1) if seconds else 0.0,
        }


def _remove(left: Path) -> None:
    if left.is_dir():
        shutil.rmtree(left)
    else:
        left.unlink(missing_ok=True)
