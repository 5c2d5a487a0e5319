"""Files of texts: lines, JSON lines, CSV or Parquet → records, one at a time.

Each record carries the offset of the next one, so an interrupted job can resume there.
"""

import csv
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, Protocol

from embedserve_client.errors import FileError

SourceFormat = Literal["txt", "jsonl", "csv", "parquet"]
FORMAT_BY_SUFFIX: dict[str, SourceFormat] = {
    ".txt": "txt",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
}
STDIN = "-"
#: A longer line is no text; the file has another format.
_MAX_LINE_BYTES = 64 << 20
_FINGERPRINT_BYTES = 1 << 20
_PARQUET_BATCH_ROWS = 1024


class Record(NamedTuple):
    """A text and the other fields of its record."""

    text: str
    fields: dict[str, Any]  #: all fields of the record, including the text
    number: int  #: position in the file, from 1
    next_offset: int  #: where the next record starts: in bytes, or in rows of a Parquet file


class Source(Protocol):
    """A file of texts."""

    name: str
    format: SourceFormat
    size: int | None  #: in the unit of `Record.next_offset`; None: unknown

    def fingerprint(self) -> dict[str, Any]:
        """Returns properties that change when the content changes."""
        ...

    def records(self, offset: int = 0, number: int = 0) -> Iterator[Record]:
        """Yields the records from `offset` on; `number` is the number of the record before.

        Raises:
            FileError: the file can't be read, or a record has no text.
        """
        ...


def open_source(name: str, file_format: SourceFormat | None, column: str) -> Source:
    """Opens a file of texts.

    Args:
        name: a path, or `-` for standard input.
        file_format: None: determined by the suffix; lines of text for an unknown suffix.
        column: the field with the text, in formats with fields.

    Raises:
        FileError: there is no such file, or it can't be read.
    """
    if name == STDIN:
        return LineSource(name, file_format or "txt", column)
    path = Path(name)
    if not path.is_file():
        raise FileError(f"There is no file {name}.")
    file_format = file_format or FORMAT_BY_SUFFIX.get(path.suffix.lower(), "txt")
    if file_format == "parquet":
        return ParquetSource(name, column)
    return LineSource(name, file_format, column)


@dataclass
class _LineReader:
    """An iterator over the lines of a file, which counts their bytes."""

    file: IO[bytes]
    name: str
    offset: int

    def __iter__(self) -> Iterator[str]:
        while line := self.file.readline(_MAX_LINE_BYTES + 1):
            if len(line) > _MAX_LINE_BYTES:
                raise FileError(f"{self.name} has a line of more than {_MAX_LINE_BYTES >> 20} MiB.")
            encoding = "utf-8-sig" if self.offset == 0 else "utf-8"  # drops a byte order mark
            self.offset += len(line)
            try:
                yield line.decode(encoding)
            except UnicodeDecodeError as error:
                raise FileError(
                    f"{self.name} isn't UTF-8 near byte {self.offset - len(line) + error.start}."
                ) from None


class LineSource:
    """Texts as lines, JSON lines, or CSV with a header."""

    def __init__(self, name: str, file_format: SourceFormat, column: str) -> None:
        self.name = name
        self.format = file_format
        self.size = None if name == STDIN else Path(name).stat().st_size
        self._column = column

    def fingerprint(self) -> dict[str, Any]:
        """Returns the size, the options, and a hash of the first MiB."""
        if self.name == STDIN:
            return {"name": STDIN}
        with Path(self.name).open("rb") as file:
            head = hashlib.sha256(file.read(_FINGERPRINT_BYTES)).hexdigest()
        return {"size": self.size, "head": head, "column": self._column, "format": self.format}

    def records(self, offset: int = 0, number: int = 0) -> Iterator[Record]:
        """Yields the records; blank JSON lines are skipped."""
        with self._open() as file:
            lines = _LineReader(file, self.name, 0)
            header = self._read_header(lines) if self.format == "csv" else None
            if offset > lines.offset:
                file.seek(offset)
                lines.offset = offset
            if header is not None:
                yield from self._csv_records(lines, header, number)
                return
            for line in lines:
                fields = self._parse_line(line.rstrip("\r\n"), number + 1)
                number += 1
                if fields is not None:
                    yield Record(fields[self._column], fields, number, lines.offset)

    @contextmanager
    def _open(self) -> Iterator[IO[bytes]]:
        if self.name == STDIN:
            # A duplicate, because at exit Python waits for a thread that is reading `sys.stdin`.
            with os.fdopen(os.dup(0), "rb") as file:
                yield file
            return
        try:
            with Path(self.name).open("rb") as file:
                yield file
        except OSError as error:
            raise FileError(f"Can't read {self.name}: {error}") from None

    def _parse_line(self, line: str, number: int) -> dict[str, Any] | None:
        if self.format == "txt":
            return {self._column: line}
        if not line.strip():
            return None
        try:
            value = json.loads(line)
        except ValueError as error:
            raise FileError(f"{self.name}, line {number}, isn't JSON: {error}.") from None
        fields = value if isinstance(value, dict) else {self._column: value}
        _check_text(fields, self._column, f"{self.name}, line {number}")
        return fields

    def _read_header(self, lines: _LineReader) -> list[str]:
        header = next(csv.reader(lines), [])
        if self._column not in header:
            raise FileError(
                f"{self.name} has no column {self._column!r}, only {', '.join(header) or 'none'}: "
                "select one with --column."
            )
        return header

    def _csv_records(self, lines: _LineReader, header: list[str], number: int) -> Iterator[Record]:
        try:
            for values in csv.reader(lines):
                number += 1
                if not values:
                    continue
                if len(values) != len(header):
                    raise FileError(
                        f"{self.name}, record {number}, has {len(values)} values for "
                        f"{len(header)} columns."
                    )
                fields = dict(zip(header, values, strict=True))
                yield Record(fields[self._column], fields, number, lines.offset)
        except csv.Error as error:
            raise FileError(f"{self.name}, record {number + 1}: {error}.") from None


class ParquetSource:
    """Texts in a column of a Parquet file."""

    format: SourceFormat = "parquet"

    def __init__(self, name: str, column: str) -> None:
        self.name = name
        self._column = column
        self._file = open_parquet(name)
        self.schema = self._file.schema_arrow
        self.size = self._file.metadata.num_rows
        if column not in self.schema.names:
            raise FileError(
                f"{name} has no column {column!r}, only {', '.join(self.schema.names)}: select one "
                "with --column."
            )

    def fingerprint(self) -> dict[str, Any]:
        """Returns the size, the number of rows, the schema, and the column."""
        size = Path(self.name).stat().st_size
        return {
            "size": size,
            "rows": self.size,
            "schema": str(self.schema),
            "column": self._column,
        }

    def records(self, offset: int = 0, number: int = 0) -> Iterator[Record]:
        """Yields one record for each row."""
        row = 0
        for group in range(self._file.num_row_groups):
            group_rows = self._file.metadata.row_group(group).num_rows
            if row + group_rows <= offset:
                row += group_rows
                continue
            for batch in self._file.iter_batches(_PARQUET_BATCH_ROWS, row_groups=[group]):
                skip = max(0, offset - row)
                for i, fields in enumerate(batch.slice(skip).to_pylist(), row + skip + 1):
                    _check_text(fields, self._column, f"{self.name}, row {i}")
                    yield Record(fields[self._column], fields, i, i)
                row += batch.num_rows


def open_parquet(name: str) -> Any:
    """Opens a Parquet file with pyarrow.

    Raises:
        FileError: the file can't be read, or pyarrow isn't installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise FileError("Parquet needs pyarrow: pip install 'embedserve-client[parquet]'") from None
    try:
        return pyarrow.parquet.ParquetFile(name)
    except (OSError, pyarrow.ArrowException) as error:
        raise FileError(f"Can't read {name}: {error}") from None


def _check_text(fields: dict[str, Any], column: str, location: str) -> None:
    if not isinstance(fields.get(column), str):
        names = ", ".join(fields) or "none"
        raise FileError(
            f"{location}, has no text in field {column!r}; its fields are: {names}. Select one "
            "with --column."
        )
