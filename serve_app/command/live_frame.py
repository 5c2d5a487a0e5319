"""The live view in a terminal: snapshots → lines that fit a window. Pure functions."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from serve_app.command.live_history import LiveHistory
from serve_app.command.quantity import (
    NONE,
    amount,
    byte_size,
    milliseconds,
    percent,
    seconds,
    usd,
)
from serve_app.command.sparkline import sparkline
from serve_app.live.snapshot import Snapshot

MIN_WIDTH = 40
#: From this width on, tables have all columns.
_WIDE = 100
_LABEL_WIDTH, _VALUE_WIDTH = 13, 10
#: What stands on the right of a sparkline.
_REMARK_WIDTH = 30
_MIN_CHART_WIDTH = 8
#: A header and a row.
_MIN_TABLE_LINES = 2
_GAP = 2
_MIN_ELASTIC_WIDTH = 8
_KEYS = "q quit   p pause   m sort models"


class _Column(NamedTuple):
    """A column of a table."""

    title: str
    cell: Callable[[Any], str | None]
    is_number: bool = False
    is_wide: bool = False  #: whether only wide windows show it
    is_elastic: bool = False  #: whether it is cut off where the others need the room


class _Section(NamedTuple):
    """A table, one line for each row."""

    rows: Sequence[Any]
    columns: Sequence[_Column]


def frame(history: LiveHistory, url: str, width: int, height: int | None = None) -> RenderableType:
    """Returns what to print.

    Args:
        history: with one snapshot at least.
        url: of the service.
        width: of the window, in characters.
        height: of the window, in lines, all of which are filled; None: it has no end, and no
            keys are listed.
    """
    snapshot = history.shown[-1]
    lines: list[RenderableType] = [_header(history, url, width), *_rates(history.shown, width)]
    footer = _footer(history)
    room = None if height is None else max(0, height - len(lines) - 1)
    sections = _sections(history, snapshot)
    heights = _heights([len(section.rows) for section in sections], room)
    shown = [(s, count) for s, count in zip(sections, heights, strict=True) if count]
    has_gaps = room is None or sum(heights) + len(shown) <= room
    for section, count in shown:
        if has_gaps:
            lines.append(Text(""))
        lines.append(_table(section, count - 1, width))
    if room is not None:
        lines += [Text("")] * (room - sum(heights) - has_gaps * len(shown))
        lines.append(footer)
    return Group(*lines)


def _heights(rows: Sequence[int], room: int | None) -> list[int]:
    """Returns how many lines each table has; 0: it isn't shown.

    Each one that isn't empty gets a header and a row, as far as there is room, and then they share
    the rest line by line.
    """
    wanted = [count + 1 if count else 0 for count in rows]
    if room is None:
        return wanted
    heights = [0] * len(wanted)
    for i, count in enumerate(wanted):
        if count and sum(heights) + _MIN_TABLE_LINES <= room:
            heights[i] = _MIN_TABLE_LINES
    while sum(heights) < room:
        growing = [i for i, height in enumerate(heights) if 0 < height < wanted[i]]
        if not growing:
            break
        smallest = min(growing, key=lambda i: heights[i])
        heights[smallest] += 1
    return heights


def _header(history: LiveHistory, url: str, width: int) -> Text:
    snapshot = history.shown[-1]
    at = datetime.fromtimestamp(snapshot["unix"]).astimezone()
    left = f"EmbedServe {snapshot['version']} · {snapshot['topology']} · {url}"
    right = f"up {seconds(snapshot['uptime_s'])} · {at:%H:%M:%S}"
    room = max(0, width - len(right) - 2)
    text = _line(left)
    text.truncate(room, overflow="ellipsis", pad=True)
    text.stylize("bold")
    return text.append(f"  {right}")


def _footer(history: LiveHistory) -> Text:
    if history.lost is not None:
        return _line(f"No connection: {history.lost} Trying again…", "bold red")
    order = f"models {history.order}"
    if history.is_paused:
        return _line("paused", "bold yellow").append(f"   {_KEYS} ({order})", "dim")
    return _line(f"{_KEYS} ({order})", "dim")


def _rates(snapshots: Sequence[Snapshot], width: int) -> list[RenderableType]:
    snapshot = snapshots[-1]
    requests, lanes = snapshot["requests"], snapshot["lanes"]
    batches, cache, cost = snapshot["batches"], snapshot["cache"], snapshot["cost"]
    errors = _line(f"errors {amount(requests['errors_per_s'])} /s")
    if requests["errors_per_s"]:
        errors.stylize("bold red")
    lines: list[RenderableType] = [
        _chart(
            "requests/s",
            amount(requests["per_s"]),
            [each["requests"]["per_s"] for each in snapshots],
            errors.append(f" · in flight {amount(requests['in_flight'])}", "default"),
            width,
        ),
        _chart(
            "p99",
            milliseconds(requests["p99_ms"]),
            [each["requests"]["p99_ms"] for each in snapshots],
            _line(f"p50 {milliseconds(requests['p50_ms'])}"),
            width,
        ),
        *(
            _line(
                f"{name:<{_LABEL_WIDTH}}p50 {milliseconds(lane['p50_ms']):<10} "
                f"p99 {milliseconds(lane['p99_ms']):<10} queued {amount(lane['queued_tokens'])} "
                f"tokens, oldest {seconds(lane['oldest_s'])}"
            )
            for name, lane in (("interactive", lanes["interactive"]), ("bulk", lanes["bulk"]))
        ),
        _line(
            f"{'work':<{_LABEL_WIDTH}}{amount(snapshot['texts_per_s'])} texts/s · "
            f"{amount(snapshot['tokens_per_s'])} tokens/s"
        ),
        _line(
            f"{'batches':<{_LABEL_WIDTH}}{amount(batches['per_s'])} /s of "
            f"{amount(batches['texts_mean'])} texts · fill {percent(batches['fill'])} · "
            f"padding {percent(batches['padding_share'])}"
        ),
        _line(
            f"{'cache hits':<{_LABEL_WIDTH}}{percent(cache['hit_ratio'])} · "
            f"L1 {percent(cache['l1_hit_ratio'])} of {byte_size(cache['l1_bytes'])} · "
            f"L2 {percent(cache['l2_hit_ratio'])}, {cache['state']}"
            + (f": {cache['reason']}" if cache["reason"] else ""),
            "yellow" if cache["state"] in ("degraded", "unknown") else "",
        ),
    ]
    if cost["usd_total"] is not None:
        lines.append(
            _line(
                f"{'cost':<{_LABEL_WIDTH}}{usd(cost['usd_per_hour'])} /h · "
                f"the cache saves {usd(cost['saved_usd_per_hour'])} /h · "
                f"{usd(cost['usd_total'])} in all"
            )
        )
    return lines


def _chart(
    label: str, value: str, values: Sequence[float | None], remark: Text, width: int
) -> Text:
    chart_width = max(_MIN_CHART_WIDTH, width - _LABEL_WIDTH - _VALUE_WIDTH - _REMARK_WIDTH - 2 * 2)
    text = _line(f"{label:<{_LABEL_WIDTH}}").append(f"{value:>{_VALUE_WIDTH}}  ", "bold")
    return text.append(sparkline(values, chart_width), "cyan").append("  ").append_text(remark)


def _sections(history: LiveHistory, snapshot: Snapshot) -> list[_Section]:
    return [
        _Section(history.models(), _MODELS),
        _Section(snapshot["deployments"], _DEPLOYMENTS),
        _Section(snapshot["replicas"], _REPLICAS),
        _Section(snapshot["keys"], _API_KEYS),
    ]


def _table(section: _Section, lines: int, width: int) -> Table:
    """Returns the rows that fit; the last line says how many don't."""
    columns = [each for each in section.columns if width >= _WIDE or not each.is_wide]
    shown = section.rows if len(section.rows) <= lines else section.rows[: lines - 1]
    rows = [[_line(column.cell(row) or NONE) for column in columns] for row in shown]
    widths = [
        max(len(column.title), *(cell.cell_len for cell in cells))
        for column, *cells in zip(columns, *rows, strict=True)
    ]
    fixed = sum(w + _GAP for w, c in zip(widths, columns, strict=True) if not c.is_elastic)
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold reverse")
    for column in columns:
        table.add_column(
            column.title,
            justify="right" if column.is_number else "left",
            max_width=max(_MIN_ELASTIC_WIDTH, width - fixed) if column.is_elastic else None,
            no_wrap=True,
            overflow="ellipsis",
        )
    for cells in rows:
        table.add_row(*cells)
    if len(shown) < len(section.rows):
        table.add_row(_line(f"… {len(section.rows) - len(shown)} more", "dim"))
    return table


def _line(text: str, style: str = "") -> Text:
    """Returns a line. Names come from the service, so they may have control characters."""
    printable = "".join(char if char.isprintable() else "�" for char in text)
    return Text(printable, style, no_wrap=True, overflow="ellipsis", end="\n")


def _engine(row: Any) -> str:
    return " · ".join(part for part in (row["engine"], row["precision"]) if part)


def _replicas(row: Any) -> str:
    if row["target"] in (None, row["replicas"]):
        return amount(row["replicas"])
    return f"{amount(row['replicas'])} → {amount(row['target'])}"


_MODELS = (
    _Column("model", lambda row: row["name"], is_elastic=True),
    _Column("task", lambda row: row["task"], is_wide=True),
    _Column("state", lambda row: row["state"]),
    _Column("engine", _engine),
    _Column("requests/s", lambda row: amount(row["requests_per_s"]), is_number=True),
    _Column("queued tokens", lambda row: amount(row["queued_tokens"]), is_number=True),
)
_DEPLOYMENTS = (
    _Column("deployment", lambda row: row["name"]),
    _Column("replicas", _replicas, is_number=True),
    _Column("busy", lambda row: percent(row["busy_share"]), is_number=True),
    _Column("decided by", lambda row: row["decided_by"], is_wide=True),
    _Column("reason", lambda row: row["reason"], is_elastic=True),
)
_REPLICAS = (
    _Column("replica of", lambda row: row["deployment"]),
    _Column("id", lambda row: row["id"]),
    _Column("node", lambda row: row["node"], is_wide=True),
    _Column("process", lambda row: str(row["pid"] or NONE), is_number=True),
    _Column("state", lambda row: row["state"].replace("_", " ")),
    _Column("up", lambda row: seconds(row["uptime_s"]), is_number=True, is_wide=True),
    _Column("busy", lambda row: percent(row["busy_share"]), is_number=True),
    _Column("memory", lambda row: byte_size(row["memory_bytes"]), is_number=True),
    _Column("queued tokens", lambda row: amount(row["queued_tokens"]), is_number=True),
)
_API_KEYS = (
    _Column("API key", lambda row: row["name"], is_elastic=True),
    _Column("tokens/s", lambda row: amount(row["tokens_per_s"]), is_number=True),
    _Column(
        "limit/min",
        lambda row: "none" if row["limit"] is None else amount(row["limit"]),
        is_number=True,
    ),
    _Column("left", lambda row: amount(row["remaining"]), is_number=True),
)
