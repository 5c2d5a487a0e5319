"""The records of all runs: the newest of each fault and topology."""

from collections.abc import Iterable
from pathlib import Path

import orjson

from ..record import Record

_FILES = "faults-*.jsonl"
_KINDS = ("refused", "failed", "lost", "wrong")
_PERIODS = ("before", "during", "after")


def read_newest(folder: Path) -> list[Record]:
    """Returns the newest record of each fault in each topology, in the order of their first run."""
    newest: dict[tuple[str, str], Record] = {}
    for file in sorted(folder.glob(_FILES)):
        for line in file.read_bytes().splitlines():
            record = orjson.loads(line)
            newest[record["topology"], record["fault"]] = record
    return [*newest.values()]


def total(record: Record, name: str) -> int:
    """Returns the sum of a figure over before, during and after."""
    return sum(record[period][name] for period in _PERIODS)


def worst_p99_ms(record: Record) -> float:
    """Returns the highest p99 of the three periods, of right replies."""
    return max(float(record[period]["p99_ms"]) for period in _PERIODS)


def broken_requests(record: Record) -> int:
    """Returns how many requests failed, were lost or got wrong vectors."""
    return sum(total(record, name) for name in ("failed", "lost", "wrong"))


def summary(record: Record) -> str:
    """Returns the outcome of a fault on one line."""
    counts = ", ".join(f"{total(record, kind)} {kind}" for kind in _KINDS if total(record, kind))
    recovery_s = record["recovery_s"]
    recovered = "not recovered" if recovery_s is None else f"recovered in {recovery_s:.1f} s"
    problem = f"  {record['problem']}" if record["problem"] else ""
    return (
        f"{record['topology']} {record['fault']}: {total(record, 'sent')} sent, "
        f"{counts or 'all right'}, {recovered}{problem}"
    )


def order(records: Iterable[Record], names: Iterable[str]) -> list[Record]:
    """Returns the records of known faults: by topology, `separate` first, then as `names` are."""
    places = {name: place for place, name in enumerate(names)}
    known = [record for record in records if record["fault"] in places]
    return sorted(known, key=lambda r: (r["topology"] != "separate", places[r["fault"]]))
