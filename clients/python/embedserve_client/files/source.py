"""Where texts come from: lines, JSON lines, CSV or Parquet, one record at a time.

Each record comes with the place behind it, so that whoever was interrupted goes on from there.
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

Kind = Literal["txt", "jsonl", "csv", "parquet"]
#: What a file's name ends in, and what it is then.
KINDS: dict[str, Kind] = {
    ".txt": "txt",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
}
STDIN = "-"
#: One line of more is not a text but the wrong kind of file.
_LINE_BYTES = 64 << 20
_HEAD_BYTES = 1 << 20
_PARQUET_ROWS = 1024


class Record(NamedTuple):
    """One text, and what stood beside it."""

    text: str
    row: dict[str, Any]  #: the record's fields, the text's among them
    number: int  #: its place in the file, from 1
    at: int  #: where the next one begins: bytes, or rows of a Parquet file


class Source(Protocol):
    """A file of texts."""

    name: str
    kind: Kind
    total: int | None  #: in the unit of `Record.at`; None: not known

    def fingerprint(self) -> dict[str, Any]:
        """What tells whether it is still the same."""
        ...

    def records(self, at: int = 0, number: int = 0) -> Iterator[Record]:
        """Its records, from the place `at`, where `number` came before.

        Raises:
            FileError: it can't be read, or a record has no text.
        """
        ...


def open_source(name: str, kind: Kind | None, column: str) -> Source:
    """The source that a user names; `-` is the standard input.

    Args:
        name: a file, or `-`.
        kind: what it holds; None: by its name, lines of text if that doesn't tell.
        column: the field that holds the text, where there are fields.

    Raises:
        FileError: there is no such file, or it can't be read here.
    """
    if name == STDIN:
        return LineSource(name, kind or "txt", column)
    path = Path(name)
    if not path.is_file():
        raise FileError(f"There is no file {name}.")
    kind = kind or KINDS.get(path.suffix.lower(), "txt")
    if kind == "parquet":
        return ParquetSource(name, column)
    return LineSource(name, kind, column)


@dataclass
class _Lines:
    """A file's lines, and how many bytes of it they took."""

    file: IO[bytes]
    name: str
    at: int

    def __iter__(self) -> Iterator[str]:
        while line := self.file.readline(_LINE_BYTES + 1):
            if len(line) > _LINE_BYTES:
                raise FileError(f"{self.name} has a line of more than {_LINE_BYTES >> 20} MiB.")
            mark = "utf-8-sig" if self.at == 0 else "utf-8"
            self.at += len(line)
            try:
                yield line.decode(mark)
            except UnicodeDecodeError as error:
                raise FileError(
                    f"{self.name} isn't UTF-8 near byte {self.at - len(line) + error.start}."
                ) from None


class LineSource:
    """Texts in lines, JSON lines, or CSV with a header."""

    def __init__(self, name: str, kind: Kind, column: str) -> None:
        self.name = name
        self.kind = kind
        self.total = None if name == STDIN else Path(name).stat().st_size
        self._column = column

    def fingerprint(self) -> dict[str, Any]:
        """Size, and a hash of the beginning."""
        if self.name == STDIN:
            return {"name": STDIN}
        with Path(self.name).open("rb") as file:
            head = hashlib.sha256(file.read(_HEAD_BYTES)).hexdigest()
        return {"size": self.total, "head": head, "column": self._column, "kind": self.kind}

    def records(self, at: int = 0, number: int = 0) -> Iterator[Record]:
        """Its records; blank lines of JSON lines are none."""
        with self._opened() as file:
            lines = _Lines(file, self.name, 0)
            fields = self._fields(lines) if self.kind == "csv" else None
            if at > lines.at:
                file.seek(at)
                lines.at = at
            if fields is not None:
                yield from self._csv(lines, fields, number)
                return
            for line in lines:
                row = self._row(line.rstrip("\r\n"), number + 1)
                number += 1
                if row is not None:
                    yield Record(row[self._column], row, number, lines.at)

    @contextmanager
    def _opened(self) -> Iterator[IO[bytes]]:
        if self.name == STDIN:
            # Python would wait at its end for a thread that still reads its own.
            with os.fdopen(os.dup(0), "rb") as file:
                yield file
            return
        try:
            with Path(self.name).open("rb") as file:
                yield file
        except OSError as error:
            raise FileError(f"Can't read {self.name}: {error}") from None

    def _row(self, line: str, number: int) -> dict[str, Any] | None:
        if self.kind == "txt":
            return {self._column: line}
        if not line.strip():
            return None
        try:
            given = json.loads(line)
        except ValueError as error:
            raise FileError(f"{self.name}, line {number}, isn't JSON: {error}.") from None
        row = given if isinstance(given, dict) else {self._column: given}
        _check(row, self._column, f"{self.name}, line {number}")
        return row

    def _fields(self, lines: _Lines) -> list[str]:
        fields = next(csv.reader(lines), [])
        if self._column not in fields:
            raise FileError(
                f"{self.name} has no column {self._column!r} but {', '.join(fields) or 'none'}: "
                "name one with --column."
            )
        return fields

    def _csv(self, lines: _Lines, fields: list[str], number: int) -> Iterator[Record]:
        try:
            for values in csv.reader(lines):
                number += 1
                if not values:
                    continue
                if len(values) != len(fields):
                    raise FileError(
                        f"{self.name}, record {number}, has {len(values)} values for "
                        f"{len(fields)} columns."
                    )
                row = dict(zip(fields, values, strict=True))
                yield Record(row[self._column], row, number, lines.at)
        except csv.Error as error:
            raise FileError(f"{self.name}, record {number + 1}: {error}.") from None


class ParquetSource:
    """Texts in a column of a Parquet file."""

    kind: Kind = "parquet"

    def __init__(self, name: str, column: str) -> None:
        self.name = name
        self._column = column
        self._file = open_parquet(name)
        self.schema = self._file.schema_arrow
        self.total = self._file.metadata.num_rows
        if column not in self.schema.names:
            raise FileError(
                f"{name} has no column {column!r} but {', '.join(self.schema.names)}: name one "
                "with --column."
            )

    def fingerprint(self) -> dict[str, Any]:
        """Size, rows, and columns."""
        size = Path(self.name).stat().st_size
        return {"size": size, "rows": self.total, "schema": str(self.schema), "c": self._column}

    def records(self, at: int = 0, number: int = 0) -> Iterator[Record]:
        """Its records, one for each row."""
        before = 0
        for group in range(self._file.num_row_groups):
            rows = self._file.metadata.row_group(group).num_rows
            if before + rows <= at:
                before += rows
                continue
            for batch in self._file.iter_batches(_PARQUET_ROWS, row_groups=[group]):
                skip = max(0, at - before)
                for i, row in enumerate(batch.slice(skip).to_pylist(), before + skip + 1):
                    _check(row, self._column, f"{self.name}, row {i}")
                    yield Record(row[self._column], row, i, i)
                before += batch.num_rows


def open_parquet(name: str) -> Any:
    """A Parquet file.

    Raises:
        FileError: it can't be read, or pyarrow isn't installed.
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


def _check(row: dict[str, Any], column: str, where: str) -> None:
    if not isinstance(row.get(column), str):
        has = ", ".join(row) or "nothing"
        raise FileError(
            f"{where}, has no text under {column!r} but {has}: name the field with --column."
        )
