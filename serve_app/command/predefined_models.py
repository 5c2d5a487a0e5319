"""`embedserve models predefined`: the models that a configuration may name without a source."""

import argparse
import json
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from serve_app.sources import PredefinedModel, predefined_models

_COLUMNS = ("name", "source", "dimension", "max_tokens", "usd_per_1k_tokens", "read", "from")


def add_commands(commands: Any) -> None:
    """Adds `predefined` to the subcommands of `embedserve models`."""
    predefined = commands.add_parser(
        "predefined",
        help="print the models that need no `source`, with their list prices",
        description="Print the models that a configuration may name without a `source`, with the "
        "list price of 1,000 tokens, and when and where it was read. `usd_per_1k_tokens` of a "
        "model's entry overrides it.",
    )
    predefined.add_argument("--json", action="store_true", help="print JSON")
    predefined.set_defaults(run=_print)


def _print(arguments: argparse.Namespace) -> int:
    rows = [_as_json(model) for model in predefined_models().values()]
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return 0
    table = Table(*_COLUMNS)
    for row in rows:
        table.add_row(*("-" if row[name] is None else str(row[name]) for name in _COLUMNS))
    Console(width=None if sys.stdout.isatty() else 240).print(table)
    return 0


def _as_json(model: PredefinedModel) -> Mapping[str, Any]:
    price = model.price
    return {
        "name": model.name,
        "source": model.source,
        "dimension": model.dimension,
        "max_tokens": model.max_tokens,
        "max_batch_texts": model.max_batch_texts,
        "max_batch_tokens": model.max_batch_tokens,
        "usd_per_1k_tokens": None if price is None else f"{price.usd_per_1k_tokens:f}",
        "read": None if price is None else price.date.isoformat(),
        "from": None if price is None else price.source,
    }
