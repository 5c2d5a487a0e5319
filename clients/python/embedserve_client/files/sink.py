"""Files of vectors: `.npy`, JSON lines or Parquet, written so that an interrupted job can resume.

A sink writes to a partial file next to its target. `save` makes the written vectors durable and
returns a state. A sink that is opened with that state discards everything written after it and
appends. `finish` moves the result to the target.
"""

import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import orjson

from embedserve_client.errors import FileError
from embedserve_client.files.source import Record, Source, open_parquet
from embedserve_client.vectors import Float32

SinkFormat = Literal["npy", "jsonl", "parquet"]
FORMAT_BY_SUFFIX: dict[str, SinkFormat] = {
    ".npy": "npy",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
STDOUT = "-"
VECTOR_COLUMN = "embedding"
_NPY_HEADER_BYTES = 128
SinkState = dict[str, Any]


class Sink(Protocol):
    """A file of vectors that is being written."""

    def write(self, records: Sequence[Record], vectors: Float32) -> None:
        """Appends records and their vectors, shape (n, dim)."""
        ...

    def save(self) -> SinkState:
        """Makes the written vectors durable and returns the state to resume from."""
        ...

    def finish(self, metadata: dict[str, str]) -> None:
        """Moves the result to the target, with metadata of its vectors where the format has it."""
        ...

    def close(self) -> None:
        """Closes the files; saved vectors stay."""
        ...


def sink_format(target: str) -> SinkFormat:
    """Returns the format of an output file by its suffix.

    Raises:
        FileError: the suffix is unknown.
    """
    if target == STDOUT:
        return "jsonl"
    file_format = FORMAT_BY_SUFFIX.get(Path(target).suffix.lower())
    if file_format is None:
        suffixes = ", ".join(FORMAT_BY_SUFFIX)
        raise FileError(f"{target} must end in {suffixes}, which select the output format.")
    return file_format


def open_sink(target: str, source: Source, state: SinkState | None) -> Sink:
    """Opens an output file.

    Args:
        target: a path, or `-` for JSON lines on standard output.
        source: the source of the records.
        state: the last result of `save`; None: starts a new file.
    """
    if target == STDOUT:
        return StdoutSink()
    path, state = Path(target), state or {}
    match sink_format(target):
        case "npy":
            return NpySink(path, state)
        case "jsonl":
            return JsonlSink(path, state)
        case "parquet":
            return ParquetSink(path, getattr(source, "schema", None), state)


def partial_path(target: Path) -> Path:
    """Returns the path of the partial file."""
    return target.with_name(f"{target.name}.partial")


def _json_lines(records: Sequence[Record], vectors: Float32) -> bytes:
    """Returns one JSON line per record: its fields and its vector."""
    return b"".join(
        orjson.dumps(
            {**record.fields, VECTOR_COLUMN: vector},
            option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE,
        )
        for record, vector in zip(records, np.asarray(vectors), strict=True)
    )


class StdoutSink:
    """JSON lines on standard output; it can't resume."""

    def write(self, records: Sequence[Record], vectors: Float32) -> None:
        """Writes and flushes the lines."""
        sys.stdout.buffer.write(_json_lines(records, vectors))
        sys.stdout.buffer.flush()

    def save(self) -> SinkState:
        """Returns an empty state."""
        return {}

    def finish(self, metadata: dict[str, str]) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


class _PartialFile:
    """A partial file that is truncated to its saved length when it is opened again."""

    def __init__(self, target: Path, state: SinkState, header_bytes: int = 0) -> None:
        self._target = target
        path = partial_path(target)
        length = int(state.get("bytes", 0))
        try:
            self._file = path.open("r+b" if length else "wb")
            if length and path.stat().st_size < length:
                raise FileError(f"{path} is shorter than when it was saved. Use --restart.")
            self._file.truncate(length)
            self._file.seek(length or header_bytes)
        except OSError as error:
            raise FileError(f"Can't write {path}: {error}") from None

    def append(self, content: bytes | memoryview) -> None:
        self._file.write(content)

    def save(self) -> SinkState:
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
        os.replace(partial_path(self._target), self._target)

    def close(self) -> None:
        with suppress(OSError):  # closing flushes, which fails again on a full disk
            self._file.close()


class JsonlSink:
    """JSON lines."""

    def __init__(self, target: Path, state: SinkState) -> None:
        self._file = _PartialFile(target, state)

    def write(self, records: Sequence[Record], vectors: Float32) -> None:
        """Appends a line for each record."""
        self._file.append(_json_lines(records, vectors))

    def save(self) -> SinkState:
        """Returns the length of the file."""
        return self._file.save()

    def finish(self, metadata: dict[str, str]) -> None:
        """Renames the partial file; JSON lines have no place for the metadata."""
        self._file.finish()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class NpySink:
    """One float32 array of shape (n, dim), readable by `numpy.load` with or without `mmap_mode`."""

    def __init__(self, target: Path, state: SinkState) -> None:
        self._rows = int(state.get("rows", 0))
        self._dim = int(state.get("dim", 0))
        self._file = _PartialFile(target, state, _NPY_HEADER_BYTES)

    def write(self, records: Sequence[Record], vectors: Float32) -> None:
        """Appends the vectors."""
        self._rows += len(vectors)
        self._dim = vectors.shape[1]
        self._file.append(np.ascontiguousarray(vectors, dtype="<f4").data)

    def save(self) -> SinkState:
        """Returns the length of the file and the shape of the array."""
        return {**self._file.save(), "rows": self._rows, "dim": self._dim}

    def finish(self, metadata: dict[str, str]) -> None:
        """Writes the header, which holds the shape, and renames the partial file."""
        shape = f"({self._rows}, {self._dim})"
        header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
        # Version 1.0 of the format: magic, version, header length, header padded to a newline.
        padded = header.ljust(_NPY_HEADER_BYTES - 11) + "\n"
        length = (_NPY_HEADER_BYTES - 10).to_bytes(2, "little")
        self._file.finish(b"\x93NUMPY\x01\x00" + length + padded.encode("latin-1"))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class ParquetSink:
    """A table with the columns of a Parquet source, or else the string fields, and `embedding`.

    Parquet files can't be appended to. Each `save` writes a file of its own into the partial
    directory, and `finish` concatenates them.
    """

    def __init__(self, target: Path, schema: Any, state: SinkState) -> None:
        import pyarrow

        self._pyarrow = pyarrow
        self._target = target
        self._schema = schema
        self._tables: list[Any] = []
        self._parts = int(state.get("parts", 0))
        self._directory = partial_path(target)
        self._directory.mkdir(exist_ok=True)

    def write(self, records: Sequence[Record], vectors: Float32) -> None:
        """Buffers the rows until the next `save`."""
        pa = self._pyarrow
        rows = [
            {
                name: value
                for name, value in record.fields.items()
                if name != VECTOR_COLUMN and (self._schema is not None or isinstance(value, str))
            }
            for record in records
        ]
        table = pa.Table.from_pylist(rows, schema=self._schema)
        values = pa.array(np.asarray(vectors, dtype=np.float32).reshape(-1))
        column = pa.FixedSizeListArray.from_arrays(values, vectors.shape[1])
        self._tables.append(table.append_column(VECTOR_COLUMN, column))

    def save(self) -> SinkState:
        """Writes the buffered rows as one part and returns the number of parts."""
        import pyarrow.parquet

        if self._tables:
            part = self._directory / f"{self._parts:06}.parquet"
            pyarrow.parquet.write_table(self._pyarrow.concat_tables(self._tables), part)
            self._tables = []
            self._parts += 1
        return {"parts": self._parts}

    def finish(self, metadata: dict[str, str]) -> None:
        """Concatenates the parts into the target."""
        import pyarrow.parquet

        self.save()
        combined = self._directory / "combined"
        parts = [open_parquet(str(self._directory / f"{i:06}.parquet")) for i in range(self._parts)]
        schema = parts[0].schema_arrow.with_metadata(
            {f"embedserve.{name}": value for name, value in metadata.items()}
        )
        with pyarrow.parquet.ParquetWriter(combined, schema) as writer:
            for part in parts:
                writer.write_table(part.read().cast(schema))
        os.replace(combined, self._target)
        shutil.rmtree(self._directory)

    def close(self) -> None:
        """Discards buffered rows."""
        self._tables = []
