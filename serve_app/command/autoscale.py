"""`embedserve autoscale`: what the autoscaling policy has decided, and why."""

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from embedserve_client.settings import DEFAULT_URL
from serve_app.autoscale.scaling_record import ScalingRecord
from serve_app.command.checked_service import CheckedService
from serve_app.errors import Unavailable

_TIMEOUT_S = 10.0
#: Policies decide every second; an older decision is none of a running controller.
_MAX_AGE_S = 30.0


def add_commands(commands: Any) -> None:
    """Adds `autoscale` to the parser."""
    autoscale = commands.add_parser("autoscale", help="print what autoscaling decides, and why")
    explain = autoscale.add_subparsers(metavar="COMMAND", required=True).add_parser(
        "explain",
        help="print the latest decision for each deployment",
        description="Print for each deployment of a running service how many replicas the policy "
        "wants, why, the numbers that it decides by, and the latest changes.",
    )
    explain.add_argument(
        "url",
        nargs="?",
        metavar="URL",
        help=f"URL of the service (default: EMBEDSERVE_URL, or {DEFAULT_URL})",
    )
    explain.add_argument(
        "--key",
        help="API key (default: EMBEDSERVE_API_KEY, which other users of the machine don't see)",
    )
    explain.add_argument(
        "--watch",
        nargs="?",
        type=float,
        const=1.0,
        metavar="SECONDS",
        help="print again after this time (default: 1), until Ctrl-C",
    )
    explain.add_argument(
        "--json", action="store_true", help="print JSON; with --watch one line each time"
    )
    explain.set_defaults(run=_explain)


def _explain(arguments: argparse.Namespace) -> int:
    with closing(CheckedService(arguments.url, arguments.key, _TIMEOUT_S)) as service:
        if arguments.watch is None:
            records = _read(service)
            if arguments.json:
                print(json.dumps(records, indent=2))
            else:
                Console().print(_report(records))
        elif arguments.json:
            for records in _poll(service, arguments.watch):
                print(json.dumps(records), flush=True)
        else:
            with Live(auto_refresh=False) as live:
                for records in _poll(service, arguments.watch):
                    live.update(_report(records), refresh=True)
    return 0


def _poll(service: CheckedService, interval_s: float) -> Iterator[list[ScalingRecord]]:
    """Yields the decisions until Ctrl-C."""
    try:
        while True:
            yield _read(service)
            time.sleep(interval_s)
    except KeyboardInterrupt:
        return


def _read(service: CheckedService) -> list[ScalingRecord]:
    """Returns what a running service reports.

    Raises:
        EmbedError: the service is unreachable.
        Unavailable: it reports nothing.
    """
    reply = service.get("/autoscaling")
    if reply.status != 200:
        detail = reply.body.get("detail") if isinstance(reply.body, dict) else None
        reason = detail or "It may not be EmbedServe, or an earlier version."
        raise Unavailable(f"{service.url}/autoscaling: HTTP {reply.status}. {reason}")
    records: list[ScalingRecord] = reply.body["deployments"]
    return records


def _report(records: list[ScalingRecord]) -> RenderableType:
    if not records:
        return Text(
            "No deployment of this service scales by tokens. Set `autoscaling_config` with the "
            "policy `serve_app.autoscale:TokenPolicy`, as serve_config.yaml does."
        )
    return Group(*(part for record in records for part in _parts(record)))


def _parts(record: ScalingRecord) -> Iterator[RenderableType]:
    load, settings = record["load"], record["settings"]
    age_s = time.time() - record["unix"]
    yield Text(
        f"{record['deployment']}: {record['target']} replicas, {record['running']} run. "
        f"{record['reason']}",
        style="bold",
    )
    if age_s > _MAX_AGE_S:
        yield Text(
            f"Decided {age_s:,.0f} s ago: Ray's controller doesn't run, or the deployment no "
            "longer scales.",
            style="yellow",
        )
    table = Table("term", "replicas", "numbers")
    numbers = {
        "arrivals": f"{load['offered_interactive_tokens_per_s']:,.0f} tokens/s, "
        f"{record['expected_tokens_per_s']:,.0f} expected, headroom {settings['headroom']:g}",
        "queue": f"{load['queued_interactive_tokens']:,.0f} tokens, "
        f"drain_target_s {settings['drain_target_s']:g}",
        "bulk": f"{load['queued_bulk_tokens']:,.0f} tokens, "
        f"bulk_drain_target_s {settings['bulk_drain_target_s']:g}",
        "objective": f"the oldest text waits for {load['oldest_interactive_s']:.2f} s, "
        f"target_queue_s {settings['target_queue_s']:g}",
    }
    for term, need in record["needs"].items():
        mark = " ←" if term == record["decided_by"] else ""
        table.add_row(term, f"{need}{mark}", numbers.get(term, ""))
    room = "" if record["room"] is None else f", the cluster has room for {record['room']}"
    bounds = f"{record['min_replicas']} to {record['max_replicas']}{room}"
    table.add_row("bounds", bounds, "")
    table.add_row(
        "a replica",
        "",
        f"computes {load['capacity_tokens_per_s']:,.0f} tokens/s, starts in "
        f"{load['startup_s']:.1f} s"
        if load["capacity_tokens_per_s"]
        else "its speed isn't known",
    )
    table.add_row("reports", f"{load['reported']:.0f} of {load['replicas']:.0f}", "")
    yield table
    for change in record["changes"]:
        at = datetime.fromtimestamp(change["unix"]).astimezone()
        yield Text(
            f"  {at:%Y-%m-%d %H:%M:%S}  {change['before']} → {change['after']}  {change['reason']}"
        )
    yield Text("")
