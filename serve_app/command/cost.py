"""`embedserve cost`: what models, keys and days have cost."""

import argparse
import asyncio
import csv
import json
import sys
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from rich.console import Console
from rich.table import Table

from embedserve_client.settings import DEFAULT_URL
from serve_app.access.cost_report import CostQuery, CostReport
from serve_app.access.ledger import LedgerRow, Usage
from serve_app.access.ledger_store import KEEP_DAYS, LedgerStore
from serve_app.command.checked_service import CheckedService
from serve_app.command.config_file import config_path, read_config
from serve_app.config import CacheConfig
from serve_app.config.secret import read_secret
from serve_app.cost import NANO_USD
from serve_app.errors import ConfigurationError, Unavailable
from serve_app.valkey.client import close_client, connect, describe_failure
from serve_app.valkey.embedded import default_data_dir, running_servers

_TIMEOUT_S = 30.0
_COLUMNS = ("requests", "texts", "computed_texts", "tokens", "computed_tokens")
_AMOUNTS = ("cost_usd", "saved_usd")


def add_commands(commands: Any) -> None:
    """Adds `cost` to the parser."""
    cost = commands.add_parser(
        "cost",
        help="print what models, keys and days have cost",
        description="Print what requests to models with a price have cost and what the cache has "
        "saved, by model, key and day (UTC). A running service reports what the given API key "
        "may see: its own costs, or all if the service needs no keys. With a configuration file, "
        "the command reads all costs from the shared server that the file names.",
    )
    cost.add_argument(
        "source",
        nargs="?",
        metavar="URL|CONFIG",
        help="URL of a running service, or a configuration file (default: EMBEDSERVE_URL, or "
        f"{DEFAULT_URL})",
    )
    cost.add_argument(
        "--by",
        default="model,key",
        metavar="LIST",
        help="one or several of day, model and key, separated by commas (default: model,key)",
    )
    cost.add_argument("--since", metavar="DAY", help="first day, such as 2026-11-01")
    cost.add_argument("--until", metavar="DAY", help="last day (default: today)")
    cost.add_argument(
        "--key",
        help="API key (default: EMBEDSERVE_API_KEY, which other users of the machine don't see)",
    )
    output = cost.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print JSON")
    output.add_argument("--csv", action="store_true", help="print CSV, without the sum")
    cost.set_defaults(run=_cost)


def _cost(arguments: argparse.Namespace) -> int:
    query = CostQuery.parse(vars(arguments))
    source = arguments.source
    if source is None or "://" in source:
        rows = _service_rows(source, arguments.key, query)
    else:
        _, config = read_config(config_path(source), ray=False)
        rows = asyncio.run(_server_rows(config.cache, query))
    report = query.report(rows)
    if arguments.json:
        print(json.dumps(report.as_json(), indent=2))
    elif arguments.csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow([*report.by, *_COLUMNS, *_AMOUNTS])
        for line in report.lines:
            writer.writerow([*line.group, *line.amounts().values()])
    else:
        Console(width=None if sys.stdout.isatty() else 160).print(_table(report))
    return 0


def _table(report: CostReport) -> Table:
    table = Table(show_footer=True)
    for grouping in report.by:
        table.add_column(grouping, "total" if grouping == report.by[0] else "")
    for name, value in report.total.amounts().items():
        table.add_column(name.replace("_", " "), _cell(value), justify="right")
    for line in report.lines:
        cells = map(_cell, line.amounts().values())
        table.add_row(*(value or "-" for value in line.group), *cells)
    return table


def _cell(value: int | str) -> str:
    return f"{value:,}" if isinstance(value, int) else value


def _service_rows(url: str | None, key: str | None, query: CostQuery) -> list[LedgerRow]:
    """Returns the rows that a running service reports.

    Raises:
        EmbedError: the service is unreachable.
        Unavailable: it reports none.
    """
    days = {"since": query.since, "until": query.until}
    path = "/cost?" + urlencode({name: day for name, day in days.items() if day is not None})
    with closing(CheckedService(url, key, _TIMEOUT_S)) as service:
        reply = service.get(path)
        if reply.status != 200:
            detail = reply.body.get("detail") if isinstance(reply.body, dict) else None
            reason = detail or "It may not be EmbedServe, or an earlier version."
            raise Unavailable(f"{service.url}/cost: HTTP {reply.status}. {reason}")
    return [_parse_row(row) for row in reply.body["rows"]]


def _parse_row(row: Mapping[str, Any]) -> LedgerRow:
    amounts = [int(Decimal(row[name]) * NANO_USD) for name in _AMOUNTS]
    usage = Usage(*(row[name] for name in _COLUMNS), *amounts)
    return LedgerRow(date.fromisoformat(row["day"]), row["model"], row["key"], usage)


async def _server_rows(config: CacheConfig, query: CostQuery) -> list[LedgerRow]:
    """Returns the rows on the server of a configuration; of all embedded ones that run here.

    Raises:
        ConfigurationError: there is no server.
        Unavailable: it doesn't answer.
    """
    today = datetime.now(UTC).date()
    first = max(query.since or date.min, today - timedelta(KEEP_DAYS))
    rows: list[LedgerRow] = []
    for url, password in _servers(config):
        client = connect(url, password, config.timeout_s)
        try:
            store = LedgerStore(client, config.prefix, _TIMEOUT_S)
            rows += await store.rows(first, today + timedelta(1))
        except Exception as error:
            raise Unavailable(
                f"The server of `cache.url` can't be read: {describe_failure(error)}."
            ) from None
        finally:
            await close_client(client)
    return rows


def _servers(config: CacheConfig) -> list[tuple[str, str | None]]:
    """Returns URLs and passwords."""
    url = config.url.get_secret_value()
    if url == "none":
        raise ConfigurationError(
            "The configuration names no shared server (`cache.url: none`), so each process counts "
            "by itself, until it ends. Set `cache.url` to a Redis or Valkey server, or pass the "
            "URL of the running service."
        )
    if url != "embedded":
        name = config.password_env
        return [(url, name and read_secret(name, "cache.password_env"))]
    data_dir = default_data_dir() if config.data_dir is None else Path(config.data_dir)
    servers = running_servers(data_dir)
    if not servers:
        raise ConfigurationError(
            f"No embedded server runs in {data_dir}. Start the service: its costs are kept while "
            "it doesn't run. On several machines, the server runs on Ray's head."
        )
    return [*servers]
