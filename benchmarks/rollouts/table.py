"""The table of roll-outs."""

from collections.abc import Sequence

from ..record import Record

_KINDS = ("sent", "refused", "failed", "lost", "wrong")
_HEAD = ("topology", "change", "outcome", "s", *_KINDS, "p50 ms", "worst ms")
_OUTCOMES = {0: "deployed", 1: "as before"}


def table(records: Sequence[Record]) -> str:
    """Returns a Markdown table with a row for each roll-out, and one for all of a topology."""
    rows = [_row(record) for record in records]
    return "\n".join("| " + " | ".join(row) + " |" for row in (_HEAD, ["---"] * len(_HEAD), *rows))


def _row(record: Record) -> list[str]:
    figures = record.get("during") or record["total"]
    return [
        record["topology"],
        record["change"],
        _OUTCOMES.get(record.get("exit_status", -1), ""),
        f"{record['seconds']:.0f}" if "seconds" in record else "",
        *(f"{figures[kind]:,}" for kind in _KINDS),
        f"{figures['p50_ms']:.0f}",
        f"{figures['worst_ms']:.0f}",
    ]
