"""Texts of an index that has none of its own: a file with one text for each row."""

from collections.abc import Iterator
from itertools import islice

from embedserve_client.errors import FileError
from embedserve_client.files.source import Source


def read_texts(source: Source, rows: int, done: int) -> Iterator[str]:
    """Yields the texts of the rows after the first `done`.

    Args:
        source: the file.
        rows: the number of rows of the index, which must be that of the texts.
        done: the rows to leave out.

    Raises:
        FileError: the file has more or fewer texts than the index has rows, or can't be read.
    """
    number = done
    for record in islice(source.records(), done, None):
        number += 1
        if number > rows:
            break
        yield record.text
    if number != rows:
        count = "more" if number > rows else f"only {number:,}"
        raise FileError(f"{source.name} has {count} texts for {rows:,} rows of the index.")
