"""The texts that arrive: times, numbers of tokens and lanes."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Self, TextIO, get_args

import numpy as np
import numpy.typing as npt

from serve_app.types import Lane

_LANES = get_args(Lane)
_LINE_FORMAT = "Each line holds: timestamp, tokens[, lane]."
#: Larger timestamps count milliseconds: in seconds, this is the year 5138.
_MIN_MILLISECONDS = 1e11


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """Texts in order of arrival. Texts of one lane that arrive together are one request."""

    name: str
    arrival_s: npt.NDArray[np.float64]  #: shape (n,); ascending, from 0
    tokens: npt.NDArray[np.int64]  #: shape (n,); at least 1
    is_bulk: npt.NDArray[np.bool_]  #: shape (n,)

    @classmethod
    def from_arrays(
        cls,
        name: str,
        arrival_s: npt.ArrayLike,
        tokens: npt.ArrayLike,
        is_bulk: npt.ArrayLike = False,
    ) -> Self:
        """Returns the trace with texts in order of arrival.

        Raises:
            ValueError: there is no text, or a value is out of range.
        """
        times = np.asarray(arrival_s, dtype=np.float64)
        lengths = np.asarray(tokens, dtype=np.int64)
        bulk = np.broadcast_to(np.asarray(is_bulk, dtype=np.bool_), times.shape)
        if not times.size or times.shape != lengths.shape:
            raise ValueError("A trace needs at least one text, and a token count for each.")
        if not np.isfinite(times).all() or lengths.min() < 1:
            raise ValueError("Times must be finite and token counts at least 1.")
        order = np.lexsort((bulk, times))
        times = times[order] - times[order[0]]
        return cls(name, times, lengths[order], bulk[order])

    @property
    def request_starts(self) -> npt.NDArray[np.int64]:
        """Position of the first text of each request."""
        new = (np.diff(self.arrival_s) > 0) | (np.diff(self.is_bulk.astype(np.int8)) != 0)
        return np.concatenate(([0], np.flatnonzero(new) + 1))

    @property
    def duration_s(self) -> float:
        """Time of the last arrival, rounded up to seconds."""
        return float(np.floor(self.arrival_s[-1])) + 1.0

    def scaled(self, factor: float, *, seed: int) -> Self:
        """Returns a trace with `factor` times the requests, the additional ones within a second."""
        rng = np.random.default_rng(seed)
        starts = self.request_starts
        copies = int(factor) + (rng.uniform(size=starts.size) < factor % 1)
        lengths = np.diff(np.append(starts, self.tokens.size))
        text_copies = np.repeat(copies, lengths)
        texts = np.repeat(np.arange(self.tokens.size), text_copies)
        copy = np.arange(texts.size) - np.repeat(np.cumsum(text_copies) - text_copies, text_copies)
        delays = rng.uniform(size=(starts.size, max(int(copies.max()), 1)))
        delays[:, 0] = 0.0
        request = np.repeat(np.arange(starts.size), lengths)[texts]
        return self.from_arrays(
            self.name,
            self.arrival_s[texts] + delays[request, copy],
            self.tokens[texts],
            self.is_bulk[texts],
        )

    def tokens_per_second(self, lane: Lane) -> npt.NDArray[np.float64]:
        """Returns the tokens of a lane that arrive in each second."""
        selected = self.is_bulk == (lane == "bulk")
        return np.bincount(
            self.arrival_s[selected].astype(np.int64),
            weights=self.tokens[selected],
            minlength=int(self.duration_s),
        ).astype(np.float64)


def read_trace(file: Iterable[str], name: str) -> Trace:
    """Reads lines `timestamp, tokens[, lane]` of a CSV file, in any order, and optionally a header.

    The timestamp is in ISO 8601, or a number of seconds from any point in time; numbers above 10¹¹
    are milliseconds. Without a lane, a text is interactive.

    Args:
        file: the lines.
        name: of the trace, and of the file in messages.

    Raises:
        ValueError: a line can't be read; the message has its number.
    """
    rows = list(_rows(name, csv.reader(file, skipinitialspace=True)))
    if not rows:
        raise ValueError(f"{name} has no texts. {_LINE_FORMAT}")
    times, tokens, bulk = zip(*rows, strict=True)
    return Trace.from_arrays(name, times, tokens, bulk)


def write_trace(trace: Trace, file: TextIO) -> None:
    """Writes the lines that `read_trace` reads."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["timestamp", "tokens", "lane"])
    for arrival_s, tokens, is_bulk in zip(
        trace.arrival_s.tolist(), trace.tokens.tolist(), trace.is_bulk.tolist(), strict=True
    ):
        writer.writerow([f"{arrival_s:.6f}", tokens, "bulk" if is_bulk else "interactive"])


def _rows(name: str, lines: Iterable[list[str]]) -> Iterable[tuple[float, int, bool]]:
    for number, cells in enumerate(lines, start=1):
        values = [cell.strip() for cell in cells]
        if not any(values) or (number == 1 and values[0].lstrip("\ufeff") == "timestamp"):
            continue
        lane = values[2] if len(values) > 2 and values[2] else "interactive"
        try:
            if lane not in _LANES:
                raise ValueError(f"The lane is one of {', '.join(_LANES)}.")
            row = _seconds(values[0]), int(values[1]), lane == "bulk"
            if row[1] < 1 or not np.isfinite(row[0]):
                raise ValueError("Times must be finite and token counts at least 1.")
        except (ValueError, IndexError) as error:
            raise ValueError(f"{name}, line {number}: {error} {_LINE_FORMAT}") from error
        yield row


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return datetime.fromisoformat(text).timestamp()
    return value / 1000 if abs(value) > _MIN_MILLISECONDS else value
