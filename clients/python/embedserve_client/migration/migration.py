"""A migration: texts of an index → vectors of another space → the index with these vectors.

Memory is bounded by the batches in flight. All new vectors are of one space, which the service is
asked for in each request. After an interruption the next run continues with the rows that have no
new vector; readers use the old vectors until all rows have one.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing, suppress
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from embedserve_client.base import EmbedOptions
from embedserve_client.errors import EmbedError, FileError, HTTPError, SpaceMismatchError
from embedserve_client.files.job import AsyncEmbedder
from embedserve_client.in_order import in_order
from embedserve_client.migration.agreement import Agreement, agreement
from embedserve_client.migration.rate_limit import RateLimit
from embedserve_client.migration.store import Pin, Row, Store
from embedserve_client.prefetch import Prefetcher
from embedserve_client.space import Space
from embedserve_client.vectors import Float32

T = TypeVar("T")

OnEmpty = Literal["error", "null"]
SEED = 0
_PROBE = "a text"
_SAVE_INTERVAL_S = 2.0
_SAVE_INTERVAL_ROWS = 16384
#: A batch ends with the text that reaches it, so that long texts don't fill the memory.
_BATCH_CHARS = 1_000_000
#: Rows that are added or changed during the migration are embedded in further passes.
_MAX_PASSES = 20


@dataclass(frozen=True, slots=True)
class MigrationOptions:
    """The options of a migration."""

    embed: EmbedOptions
    batch_size: int = 256
    concurrency: int = 4
    texts_per_s: float | None = None  #: None: as fast as the service computes
    on_empty: OnEmpty = "error"
    sample: int = 10_000  #: rows whose neighbours are compared; 0: none
    min_agreement: float = 0.0  #: the share of kept neighbours below which the old vectors stay
    switch: bool = True  #: False: the old vectors stay until another run
    force: bool = False  #: embeds again even if the vectors are in the service's space


@dataclass(slots=True)
class Report:
    """What a migration has done."""

    index: str
    rows: int
    resumed_at: int = 0
    embedded: int = 0
    without_vector: int = 0  #: of the rows of this run
    old_space: str | None = None
    space: str = ""
    model: str = ""
    seconds: float = 0.0
    agreement: Agreement | None = None
    switched: bool = False
    already_there: bool = False  #: the vectors were in the space of the service before

    def as_dict(self) -> dict[str, Any]:
        """Returns the report as a JSON object."""
        rate = self.embedded / self.seconds if self.seconds else 0.0
        return {**asdict(self), "texts_per_s": round(rate, 1)}


class _Batch(NamedTuple):
    rows: list[Row]

    @property
    def texts(self) -> list[str]:
        return [row.text for row in self.rows if row.text]


class Migration:
    """One run of a migration."""

    def __init__(
        self,
        store: Store,
        connect: Callable[[str | None], AsyncEmbedder],
        options: MigrationOptions,
        on_progress: Callable[[int], None] = lambda rows: None,
    ) -> None:
        """Creates a run.

        Args:
            store: the index.
            connect: returns a client that pins a space, or none.
            options: the options.
            on_progress: called with the number of rows that are done, after each batch.
        """
        self._store = store
        self._connect = connect
        self._options = options
        self._on_progress = on_progress
        self._limit = RateLimit(options.texts_per_s)
        self._saved_at, self._unsaved = time.monotonic(), 0
        self._embedder: AsyncEmbedder
        self._done = store.done
        self.report = Report(
            store.name,
            store.size,
            store.done,
            old_space=None if store.space is None else str(store.space),
        )

    async def run(self) -> Report:
        """Embeds the remaining rows, compares old and new vectors, and replaces the old ones.

        Raises:
            SpaceMismatchError: the service's space isn't the one that the migration has begun with.
            EmbedError: the run failed; finished rows stay, and the next run continues.
        """
        started_at = time.monotonic()
        pin = self._store.pin
        self._embedder = self._connect(None if pin is None else pin.space)
        try:
            if await self._begin(pin):
                await self._migrate()
        except SpaceMismatchError as error:
            pin = self._store.pin
            if pin is None or not self._done:
                raise
            raise SpaceMismatchError(
                f"The service no longer has the space {pin.space} of the {self._done:,} rows that "
                f"are done: {error} Nothing is mixed. Serve the earlier model again and run the "
                "same command, or start over with --restart."
            ) from error
        finally:
            await self._embedder.close()
            self.report.seconds = round(time.monotonic() - started_at, 3)
        return self.report

    async def _begin(self, pin: Pin | None) -> bool:
        """Pins the space; returns whether there is anything to do."""
        probe = await self._embedder.embed([_PROBE], **self._options.embed)
        if probe.space is None:
            raise FileError(
                "The service reports no space of its vectors, so nothing could prevent a mix of "
                "two models. Is it an EmbedServe?"
            )
        options = {name: v for name, v in self._options.embed.items() if name != "timeout_s"}
        if pin is None:
            pin = Pin(str(probe.space), probe.info.model, probe.shape[1], options)
            old = self._store.space
            is_there = old is not None and old.is_comparable_to(probe.space)
            if is_there and not self._options.force:
                self.report.already_there = True
        elif pin.options != options:
            raise FileError(
                f"The interrupted migration of {self._store.name} had other options: {pin.options}."
                " Use the same, or start over with --restart."
            )
        self.report.space, self.report.model = pin.space, pin.model
        if self.report.already_there:
            return False
        await _in_thread(lambda: self._store.begin(pin))
        await self._embedder.close()
        self._embedder = self._connect(pin.space)
        return True

    async def _migrate(self) -> None:
        store, options = self._store, self._options
        for attempt in range(_MAX_PASSES):
            await self._embed_rows()
            if attempt == 0 and options.sample:
                self.report.agreement = await _in_thread(self._compare)
            found = self.report.agreement
            if found is not None and found.kept < options.min_agreement:
                return
            if not options.switch:
                return
            if await _in_thread(store.switch):
                self.report.switched = True
                return
        raise EmbedError(
            f"Rows of {store.name} are added or changed faster than they are embedded. Pause "
            "whatever writes them, and run the same command again."
        )

    def _compare(self) -> Agreement | None:
        return agreement(self._store.sample(self._options.sample, SEED), SEED)

    async def _embed_rows(self) -> None:
        batches = Prefetcher(self._batches())
        try:
            async with aclosing(in_order(batches, self._embed, self._options.concurrency)) as done:
                async for batch, vectors in done:
                    await self._write(batch, vectors)
            await _in_thread(self._store.save)
        except BaseException:
            with suppress(EmbedError):  # the first error is the one to report
                await _in_thread(self._store.save)
            raise
        finally:
            batches.close()

    def _batches(self) -> Iterator[_Batch]:
        rows, chars = list[Row](), 0
        for row in self._store.rows():
            if not row.text and (self._options.on_empty == "error" or not self._store.is_nullable):
                advice = " Leave its vector out with --on-empty null."
                raise FileError(
                    f"Row {row.key} of {self._store.name} has no text, and an empty text has no "
                    f"vector.{advice if self._store.is_nullable else ''}"
                )
            rows.append(row)
            chars += len(row.text)
            if len(rows) == self._options.batch_size or chars >= _BATCH_CHARS:
                yield _Batch(rows)
                rows, chars = [], 0
        if rows:
            yield _Batch(rows)

    async def _embed(self, batch: _Batch) -> Float32:
        """Returns vectors, shape (rows, dim), of NaN for rows without a text."""
        pin = self._store.pin
        assert pin is not None, "Vectors before `begin`. A bug."
        texts = batch.texts
        result = np.full((len(batch.rows), pin.dim), np.nan, dtype=np.float32)
        if not texts:
            return result
        await asyncio.sleep(self._limit.delay_s(len(texts)))
        try:
            vectors = await self._embedder.embed(texts, **self._options.embed)
        except SpaceMismatchError:
            raise
        except HTTPError as error:
            first, last = batch.rows[0].key, batch.rows[-1].key
            error.args = (
                f"{error.args[0]} Positions are relative to the batch of rows {first} to {last}.",
            )
            raise
        pinned = Space.parse(pin.space)
        if vectors.space is None or not vectors.space.is_comparable_to(pinned):
            raise SpaceMismatchError(f"The vectors are in space {vectors.space or 'unknown'}.")
        if vectors.shape[1] != pin.dim:
            raise SpaceMismatchError(
                f"The vectors have {vectors.shape[1]} dimensions, earlier ones {pin.dim}."
            )
        result[[bool(row.text) for row in batch.rows]] = vectors
        return result

    async def _write(self, batch: _Batch, vectors: Float32) -> None:
        written = await _in_thread(lambda: self._store.write(batch.rows, vectors))
        texts = len(batch.texts)
        self.report.embedded += texts
        self.report.without_vector += len(batch.rows) - texts
        self._done += written
        self._unsaved += len(batch.rows)
        is_due = time.monotonic() - self._saved_at > _SAVE_INTERVAL_S
        if is_due or self._unsaved >= _SAVE_INTERVAL_ROWS:
            await _in_thread(self._store.save)
            self._saved_at, self._unsaved = time.monotonic(), 0
        self._on_progress(self._done)


async def _in_thread(function: Callable[[], T]) -> T:
    """Runs a function that blocks; a cancellation waits for its end, so that none overlap."""
    task = asyncio.ensure_future(asyncio.to_thread(function))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
