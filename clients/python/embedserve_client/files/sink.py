"""Where vectors go: `.npy`, JSON lines or Parquet, so that an interruption loses nothing.

A sink writes beside its target. `save` makes what was written last and gives a state; a sink that
is opened with that state goes on behind it, whatever came after it before the interruption.
`finish` puts the target in its place.
"""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import orjson

from embedserve_client.errors import FileError
from embedserve_client.files.source import Record, Source, open_parquet
from embedserve_client.vectors import Float32

Kind = Literal["npy", "jsonl", "parquet"]
KINDS: dict[str, Kind] = {
    ".npy": "npy",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
COLUMN = "embedding"
_NPY_HEADER_BYTES = 128
State = dict[str, Any]


class Sink(Protocol):
    """A file of vectors that is being written."""

    def write(self, records: Sequence[Record], vectors: Float32) -> None:
        """Adds records and their vectors, shape (n, dim)."""
        ...

    def save(self) -> State:
        """Makes what was written last."""
        ...

    def finish(self, about: dict[str, str]) -> None:
        """Puts the target in its place, with what is known of its vectors."""
        ...

    def close(self) -> None:
        """Lets go of what is open; what was saved stays."""
        ...


def sink_kind(target: str) -> Kind:
    """What a file of this name holds.

    Raises:
        FileError: its name doesn't tell.
    """
    if target == "-":
        return "jsonl"
    kind = KINDS.get(Path(target).suffix.lower())
    if kind is None:
        raise FileError(f"{target} must end in {', '.join(KINDS)}: that tells what is written.")
    return kind


def open_sink(target: str, source: Source, state: State | None) -> Sink:
    """A sink for `target`; `-` is the standard output, as JSON lines.

    Args:
        target: the file, which need not be there.
        source: where the records come from.
        state: what `save` gave when it was interrupted; None: it begins.
    """
    if target == "-":
        return StreamSink()
    path, state = Path(target), state or {}
    match sink_kind(target):
        case "npy":
            return NpySink(path, state)
        case "jsonl":
            return JsonlSink(path, state)
        case "parquet":
            return ParquetSink(path, getattr(source, "schema", None), state)


def partial(target: Path) -> Path:
    """Where it is written before it is whole."""
    return target.with_name(f"{target.name}.partial")


def as_lines(records: Sequence[Record], vectors: Float32) -> bytes:
    """JSON lines: each record's fields, and its vector as `embedding`."""
    return b"".join(
        orjson.dumps(
            {**record.row, COLUMN: vector},
            option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE,
        )
        for record, vector in zip(records, vectors, strict=True)
    )


class StreamSink:
    """JSON lines to the standard output; what is written is gone."""

    def write(self, records: Sequence[Record], vectors: Float32) -> None:
        """Writes them at once."""
        sys.stdout.buffer.write(as_lines(records, np.asarray(vectors)))
        sys.stdout.buffer.flush()

    def save(self) -> State:
        """There is nothing to go on from."""
        return {}

    def finish(self, about: dict[str, str]) -> None:
        """Nothing is left to do."""

    def close(self) -> None:
        """Nothing is open."""


class _Appended:
    """A file that grows, and is cut back to what was saved."""

    def __init__(self, target: Path, state: State, header_bytes: int = 0) -> None:
        self._target = target
        at = int(state.get("bytes", 0))
        try:
            self._file = partial(target).open("r+b" if at else "wb")
            if at and partial(target).stat().st_size < at:
                raise FileError(f"{partial(target)} is shorter than when it was saved; --restart.")
            self._file.truncate(at)
            self._file.seek(at or header_bytes)
        except OSError as error:
            raise FileError(f"Can't write {partial(target)}: {error}") from None

    def append(self, content: bytes | memoryview) -> None:
        self._file.write(content)

    def save(self) -> State:
        self._file.flush()
        os.fsync(self._file.fileno())
        return {"bytes": self._file.tell()}

    def finish(self, header: bytes = b"") -> None:
        self._file.flush()
        if header:
            self._file.seek(0)
            self._file.write(header)
        self.save()
        self._file.close()
        os.replace(partial(self._target), self._target)

    def close(self) -> None:
        self._file.close()


class JsonlSink:
    """JSON lines."""

    def __init__(self, target: Path, state: State) -> None:
        self._file = _Appended(target, state)

    def write(self, records: Sequence[Record], vectors: Float32) -> None:
        """Appends them."""
        self._file.append(as_lines(records, np.asarray(vectors)))

    def save(self) -> State:
        """How long the file is."""
        return self._file.save()

    def finish(self, about: dict[str, str]) -> None:
        """Renames it."""
        self._file.finish()

    def close(self) -> None:
        """Closes it."""
        self._file.close()


class NpySink:
    """One float32 array of shape (n, dim), as `numpy.load` reads it, memory-mapped if wanted."""

    def __init__(self, target: Path, state: State) -> None:
        self._rows = int(state.get("rows", 0))
        self._dim = int(state.get("dim", 0))
        self._file = _Appended(target, state, _NPY_HEADER_BYTES)

    def write(self, records: Sequence[Record], vectors: Float32) -> None:
        """Appends their vectors."""
        self._rows += len(vectors)
        self._dim = vectors.shape[1]
        self._file.append(np.ascontiguousarray(vectors, dtype="<f4").data)

    def save(self) -> State:
        """How long it is."""
        return {**self._file.save(), "rows": self._rows, "dim": self._dim}

    def finish(self, about: dict[str, str]) -> None:
        """Writes the header, which tells how many there are, and renames it."""
        shape = f"({self._rows}, {self._dim})"
        header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
        # Version 1.0 of the format: magic, version, the header's length, and padding to a line end.
        padded = header.ljust(_NPY_HEADER_BYTES - 11) + "\n"
        length = (_NPY_HEADER_BYTES - 10).to_bytes(2, "little")
        self._file.finish(b"\x93NUMPY\x01\x00" + length + padded.encode("latin-1"))

    def close(self) -> None:
        """Closes it."""
        self._file.close()


class ParquetSink:
    """A table: the source's columns (of JSON lines only the text), and `embedding`.

    A Parquet file can't be gone on with, so each save makes a file of its own, and `finish` puts
    them together, one after the other.
    """

    def __init__(self, target: Path, schema: Any, state: State) -> None:
        import pyarrow

        self._arrow = pyarrow
        self._target = target
        self._schema = schema
        self._tables: list[Any] = []
        self._parts = int(state.get("parts", 0))
        self._folder = partial(target)
        self._folder.mkdir(exist_ok=True)

    def write(self, records: Sequence[Record], vectors: Float32) -> None:
        """Keeps them until the next save."""
        pa = self._arrow
        rows = [
            {name: value for name, value in record.row.items() if self._is_kept(name, record)}
            for record in records
        ]
        table = pa.Table.from_pylist(rows, schema=self._schema)
        flat = pa.array(np.asarray(vectors, dtype=np.float32).reshape(-1))
        column = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        self._tables.append(table.append_column(COLUMN, column))

    def _is_kept(self, name: str, record: Record) -> bool:
        if name == COLUMN:
            return False
        return self._schema is not None or isinstance(record.row[name], str)

    def save(self) -> State:
        """Writes what was kept as one more part."""
        import pyarrow.parquet

        if self._tables:
            part = self._folder / f"{self._parts:06}.parquet"
            pyarrow.parquet.write_table(self._arrow.concat_tables(self._tables), part)
            self._tables = []
            self._parts += 1
        return {"parts": self._parts}

    def finish(self, about: dict[str, str]) -> None:
        """Puts the parts together."""
        import pyarrow.parquet

        self.save()
        whole = self._folder / "whole"
        parts = [open_parquet(str(self._folder / f"{i:06}.parquet")) for i in range(self._parts)]
        schema = parts[0].schema_arrow.with_metadata(
            {f"embedserve.{k}": v for k, v in about.items()}
        )
        with pyarrow.parquet.ParquetWriter(whole, schema) as writer:
            for part in parts:
                writer.write_table(part.read().cast(schema))
        os.replace(whole, self._target)
        shutil.rmtree(self._folder)

    def close(self) -> None:
        """What wasn't saved is left."""
        self._tables = []
