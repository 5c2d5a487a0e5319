"""The texts of a file, such as a query log: which ones occur, and how often."""

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TextIO

from serve_app.config import RequestSettings
from serve_app.errors import ConfigurationError, InvalidRequest
from serve_app.service.validation import validate_inputs

LogFormat = Literal["jsonl", "csv", "text"]

#: Fields that hold the text if none is named, the first one that exists.
_DEFAULT_FIELDS = ("text", "query")
_FORMATS: dict[str, LogFormat] = {".csv": "csv", ".tsv": "csv", ".txt": "text", ".log": "text"}


class QueryLog:
    """The distinct texts of a file. Reads the file again for each call; holds no text itself."""

    def __init__(
        self,
        file: Path,
        *,
        format_: LogFormat | None = None,
        field: str | None = None,
        skip_invalid: bool = False,
    ) -> None:
        """Reads the file once and counts.

        Args:
            file: the file, UTF-8.
            format_: `jsonl`: each line a string, or an object. `csv`: with a header, separated by
                tabs if the name ends in `.tsv`. `text`: each line is a text. None: by the name,
                otherwise `jsonl`.
            field: the field or column of the text; None: `text`, or else `query`.
            skip_invalid: whether lines without a valid text are counted and left out.

        Raises:
            ConfigurationError: the file can't be read, or a line contains no valid text.
        """
        self._file = file
        self._format = format_ or _FORMATS.get(file.suffix.lower(), "jsonl")
        self._field = field
        self._skip_invalid = skip_invalid
        self.skipped = 0  #: lines without a valid text
        self._counts = Counter[bytes]()
        self._counts.update(_digest(text) for text in self._texts())

    @property
    def total(self) -> int:
        """The number of texts, repeated ones included."""
        return self._counts.total()

    @property
    def distinct(self) -> int:
        """The number of distinct texts."""
        return len(self._counts)

    def count(self, *, by_frequency: bool = False, top: int | None = None) -> int:
        """Returns how often the texts that `select` yields occur, together."""
        return sum(self._counts[digest] for digest in self._selected(by_frequency, top))

    def select(self, *, by_frequency: bool = False, top: int | None = None) -> Iterator[str]:
        """Yields distinct texts.

        Args:
            by_frequency: the most frequent text first; otherwise, in the order of the file.
            top: how many texts to yield at most; None: all.
        """
        selected = dict.fromkeys(self._selected(by_frequency, top))
        if not by_frequency:
            for text in self._texts():
                digest = _digest(text)
                if digest in selected:
                    del selected[digest]
                    yield text
            return
        texts = {digest: text for text in self._texts() if (digest := _digest(text)) in selected}
        yield from (texts[digest] for digest in selected)

    def _selected(self, by_frequency: bool, top: int | None) -> list[bytes]:
        if by_frequency:
            return [digest for digest, _ in self._counts.most_common(top)]
        return list(self._counts)[:top]

    def _texts(self) -> Iterator[str]:
        self.skipped = 0
        try:
            with self._file.open(encoding="utf-8-sig", newline="") as lines:
                for number, value in self._values(lines):
                    try:
                        yield self._text(value, f"{self._file}, line {number}")
                    except ConfigurationError:
                        if not self._skip_invalid:
                            raise
                        self.skipped += 1
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise ConfigurationError(f"Can't read {self._file}: {error}") from None

    def _values(self, lines: TextIO) -> Iterator[tuple[int, Any]]:
        """Yields the number and the content of each line that isn't blank."""
        if self._format == "csv":
            delimiter = "\t" if self._file.suffix.lower() == ".tsv" else ","
            rows = csv.DictReader(lines, delimiter=delimiter)
            yield from ((rows.line_num, row) for row in rows)
            return
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, line.rstrip("\r\n")

    def _text(self, value: Any, location: str) -> str:
        try:
            if self._format == "jsonl":
                value = json.loads(value)
            name = self._field_of(value) if isinstance(value, dict) else None
            text = value if name is None else value.get(name)
            validate_inputs([text], RequestSettings())
        except json.JSONDecodeError as error:
            raise ConfigurationError(
                f"{location} isn't JSON: {error}. If each line is a text, add `--format text`."
            ) from None
        except InvalidRequest as error:
            fault = str(error).removeprefix("Text 0 ")
            subject = "the text" if name is None else f"`{name}`"
            raise ConfigurationError(f"{location}: {subject} {fault}") from None
        return str(text)

    def _field_of(self, value: dict[str, Any]) -> str:
        names = (field for field in _DEFAULT_FIELDS if field in value)
        return self._field or next(names, _DEFAULT_FIELDS[0])


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
