"""The table of a soak."""

from ..record import Record

_HEAD = ("of", "what", "first", "last", "slope per hour", "verdict")


def summary(record: Record) -> str:
    """Returns the requests of a run in a few lines."""
    interactive, files = record["interactive"], record["files"]
    sent = interactive["sent"] + files["sent"]
    broken = ", ".join(
        f"{interactive[kind] + files[kind]} {kind}"
        for kind in ("refused", "failed", "lost", "wrong")
    )
    low, high = record["replicas"]
    return (
        f"{record['topology']}, {record['minutes']:g} min ({record['warm_up_minutes']:g} min "
        f"warm-up): {sent:,} requests, {record['texts']:,} texts; {broken}. "
        f"{low} to {high} replicas, {record['replica_changes']} changes, "
        f"{record['replica_lives']} processes. Valkey: at most {record['cache_max_keys']:,} keys, "
        f"{record['cache_expired']:,} expired, {record['cache_evicted']:,} evicted, "
        f"{record['keys_after']} left. "
        f"Load average {record['load_average'][0]} to {record['load_average'][1]}."
    )


def table(record: Record) -> str:
    """Returns a Markdown table with a row for each trend."""
    rows = [
        (
            finding["subject"] + ("" if finding["own"] else " (Ray)"),
            finding["quantity"],
            f"{finding['first']:,.4g}",
            f"{finding['last']:,.4g}",
            f"{finding['slope']:+.3g} ± {finding['error']:.2g} {finding['unit']}",
            finding["verdict"],
        )
        for finding in record["findings"]
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in (_HEAD, ["---"] * len(_HEAD), *rows))
