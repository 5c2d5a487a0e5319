"""`embedserve shadow report`: how the second models of aliases compare with those that answer."""

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import closing
from typing import Any, cast

from rich.console import Console
from rich.table import Table

from embedserve_client.settings import DEFAULT_URL
from serve_app.command.checked_service import CheckedService
from serve_app.errors import Unavailable
from serve_app.web.dialects.shadow import ShadowModel, ShadowReport

_TIMEOUT_S = 30.0
_WIDTH = 120
_ROWS: dict[str, Callable[[ShadowModel], str]] = {
    "space": lambda model: model["space"],
    "texts": lambda model: f"{model['texts']:,}",
    "tokens": lambda model: f"{model['tokens']:,}",
    "computed tokens": lambda model: f"{model['computed_tokens']:,}",
    "seconds of their batches": lambda model: f"{model['computed_s']:.3f}",
    "tokens per second": lambda model: _optional(model["tokens_per_s"], "{:,.0f}"),
    "USD per 1,000 tokens": lambda model: model["usd_per_1k_tokens"],
    "USD without a cache": lambda model: model["cost_usd"],
}


def add_commands(commands: Any) -> None:
    """Adds `shadow` to the parser."""
    shadow = commands.add_parser(
        "shadow",
        help="compare the second model of an alias with the first",
        description="Compare the second model of an alias with the first.",
    )
    subcommands = shadow.add_subparsers(metavar="COMMAND", required=True)
    report = subcommands.add_parser(
        "report",
        help="print how both models of each alias compare",
        description="Print how both models of each alias with a `shadow` compare on the same "
        "texts: neighbours, speed and price. The figures are of all replicas since they started.",
    )
    report.add_argument(
        "url",
        nargs="?",
        metavar="URL",
        help=f"URL of the service (default: EMBEDSERVE_URL, or {DEFAULT_URL})",
    )
    report.add_argument("--alias", metavar="NAME", help="report on this alias only")
    report.add_argument(
        "--key",
        help="API key (default: EMBEDSERVE_API_KEY, which other users of the machine don't see)",
    )
    report.add_argument("--json", action="store_true", help="print JSON")
    report.set_defaults(run=_report)


def _report(arguments: argparse.Namespace) -> int:
    with closing(CheckedService(arguments.url, arguments.key, _TIMEOUT_S)) as service:
        reports = _read(service, arguments.alias)
    if arguments.json:
        print(json.dumps(reports, indent=2))
        return 0
    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    for report in reports:
        console.print(_table(report))
        for line in _summary(report):
            console.print(line, soft_wrap=True, markup=False)
    return 0


def _read(service: CheckedService, alias: str | None) -> list[ShadowReport]:
    """Returns the reports of a running service.

    Raises:
        EmbedError: the service is unreachable.
        Unavailable: it has none.
    """
    reply = service.get("/shadow")
    if reply.status != 200 or not isinstance(reply.body, dict):
        detail = reply.body.get("detail") if isinstance(reply.body, dict) else None
        reason = detail or "It may not be EmbedServe, or an earlier version."
        raise Unavailable(f"{service.url}/shadow: HTTP {reply.status}. {reason}")
    reports = cast(list[ShadowReport], reply.body["shadows"])
    names = ", ".join(repr(report["alias"]) for report in reports)
    if not reports:
        raise Unavailable(
            f"No alias of {service.url} has a shadow. Set `shadow.model` in `aliases` of the "
            "configuration, and deploy it."
        )
    found = [report for report in reports if alias in (None, report["alias"])]
    if not found:
        raise Unavailable(f"The alias {alias!r} has no shadow. Aliases with one: {names}.")
    return found


def _table(report: ShadowReport) -> Table:
    title = f"{report['alias']}: {report['share']:.1%} of the texts"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    models = (report["answers"], report["shadow"])
    for role, model in zip(("answers", "shadow"), models, strict=True):
        table.add_column(f"{model['model']} ({role})", justify="right")
    for name, cell in _ROWS.items():
        table.add_row(name, *map(cell, models))
    return table


def _summary(report: ShadowReport) -> list[str]:
    outcomes = dict(report["outcomes"])
    compared = outcomes.pop("compared", 0)
    dropped = ", ".join(f"{name} {count:,}" for name, count in sorted(outcomes.items()))
    lines = [
        f"{compared:,} texts compared by {report['replicas']} replica(s); "
        f"dropped: {dropped or 'none'}"
    ]
    if report["kept"] is None:
        return [*lines, "Too few texts for a comparison: it needs three."]
    cosine, correlation = report["cosine"], _optional(report["rank_correlation"], "{:.3f}")
    return [
        *lines,
        f"Sample of {report['sample_texts']:,} texts:",
        f"  of the 10 nearest neighbours the same: {report['kept']:.1%}",
        f"  nearest neighbour the same:            {report['kept_first'] or 0:.1%}",
        f"  rank correlation of similarities:      {correlation}",
        *([] if cosine is None else [f"  mean cosine of both vectors:           {cosine:.6f}"]),
    ]


def _optional(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
