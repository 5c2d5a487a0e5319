"""`embedserve migrate`: an index → the same rows with vectors of another model."""

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar

from embedserve_client.async_client import AsyncClient
from embedserve_client.base import EmbedOptions
from embedserve_client.command.backend_options import add_model_option, add_url_option
from embedserve_client.errors import DatabaseError, FileError
from embedserve_client.files.source import open_source
from embedserve_client.migration.index_store import IndexStore
from embedserve_client.migration.migration import (
    SEED,
    Migration,
    MigrationOptions,
    OnEmpty,
    Report,
)
from embedserve_client.migration.parquet_store import ParquetStore
from embedserve_client.migration.store import Store
from embedserve_client.wire import Truncation

_EPILOG = """\
INDEX is a directory with a VectorIndex, a Parquet file, or the URL of a PostgreSQL database.
The old vectors stay in use until every row has a new one; then all are replaced at once. To resume
an interrupted run, run the same command again.

examples:
  embedserve migrate my-index --model new-model
  embedserve migrate my-index --texts texts.txt        where the metadata aren't the texts
  embedserve migrate rows.parquet --column body --no-switch
                                                       embed and compare, but keep the old vectors
  embedserve migrate postgresql://user@host/database --table documents
"""
#: Long enough for a service that restarts; after it the run fails and can be resumed.
_TIMEOUT_S = 600.0


def add_commands(commands: Any) -> None:
    """Adds `migrate`."""
    parser = commands.add_parser(
        "migrate",
        help="embed an index again, with another model; an interrupted run resumes",
        description="Replace the vectors of an index by those of another model.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("index", metavar="INDEX", help="a directory, a Parquet file, or the URL of a database")
    add_url_option(parser)
    add_model_option(parser)
    add("-o", "--output", help="write the new index here, and keep the old one")
    add("--table", metavar="NAME", help="the table, if INDEX is the URL of a PostgreSQL database")
    add("--column", default="text", help="column or field with the text (default: %(default)s)")
    add("--vector-column", default="embedding", help="column with the vectors (default: embedding)")
    add("--texts", metavar="FILE", help="a file with one text for each row, if the index has none")
    add(
        "--input-type", default="document", help="selects the model's prompt (default: %(default)s)"
    )
    add("--dimensions", type=_positive_int, help="number of leading dimensions to keep")
    add(
        "--truncation",
        choices=get_args(Truncation),
        default="end",
        help="what to do with texts beyond the token limit (default: %(default)s)",
    )
    add(
        "--on-empty",
        choices=get_args(OnEmpty),
        default="error",
        help="what to do with rows without text: fail, or leave their vector out (default: error)",
    )
    add("--batch-size", type=_positive_int, default=256, help="texts per request (default: 256)")
    add("--concurrency", type=_positive_int, default=4, help="concurrent requests (default: 4)")
    add("--rate", type=_positive_float, metavar="TEXTS", help="at most so many texts per second")
    add(
        "--sample",
        type=_sample_size,
        default=10_000,
        metavar="ROWS",
        help="rows among which the neighbours of old and new vectors are compared; 0: none "
        "(default: 10000)",
    )
    add(
        "--min-agreement",
        type=_share,
        default=0.0,
        metavar="SHARE",
        help="keep the old vectors if a smaller share of the 10 nearest neighbours is the same",
    )
    add("--no-switch", action="store_true", help="keep the old vectors; another run replaces them")
    add("--force", action="store_true", help="embed again even if the space is the same")
    add("--restart", action="store_true", help="discard the progress of an interrupted run")
    add("--timeout", type=_positive_float, default=_TIMEOUT_S, help=argparse.SUPPRESS)
    add("--quiet", action="store_true", help="show no progress")
    add("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(run=_migrate)


def _positive_int(text: str) -> int:
    return int(_bounded(text, 1, 2**31))


def _positive_float(text: str) -> float:
    return _bounded(text, 1e-9, 1e9)


def _sample_size(text: str) -> int:
    return int(_bounded(text, 0, 1_000_000))


def _share(text: str) -> float:
    return _bounded(text, 0, 1)


def _bounded(text: str, low: float, high: float) -> float:
    number = float(text)
    if not low <= number <= high:
        raise argparse.ArgumentTypeError(f"{text} isn't within {low:g} and {high:g}")
    return number


def _migrate(arguments: argparse.Namespace) -> int:
    console = Console(stderr=True, quiet=arguments.quiet)
    store = _open_store(arguments)

    def connect(space: str | None) -> AsyncClient:
        return AsyncClient(
            arguments.url,
            model=arguments.model,
            timeout_s=arguments.timeout,
            # A restarting service may need any number of retries; only the timeout is a bound.
            max_retries=sys.maxsize,
            expected_space=space,
        )

    try:
        bar = ProgressBar(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.completed:,.0f} rows"),
            TimeRemainingColumn(),
            console=console,
        )
        task = bar.add_task("migrating", total=store.size, completed=store.done)
        if store.done:
            _print(console, f"Resuming after {store.done:,} rows.")
        with bar:
            migration = Migration(
                store, connect, _options(arguments), lambda rows: bar.update(task, completed=rows)
            )
            report = asyncio.run(migration.run())
        summary = store.summary() if report.switched else ""
    finally:
        store.close()
    if arguments.json:
        print(json.dumps(report.as_dict()))
    else:
        _print(console, _report_text(report, arguments.min_agreement, summary))
    is_rejected = not report.switched and not report.already_there and not arguments.no_switch
    return int(is_rejected)


def _open_store(arguments: argparse.Namespace) -> Store:
    if arguments.index.startswith(("postgresql://", "postgres://")):
        return _open_table(arguments)
    path = Path(arguments.index)
    output = None if arguments.output is None else Path(arguments.output)
    texts = arguments.texts
    source = None if texts is None else open_source(texts, None, arguments.column)
    if path.is_dir():
        return IndexStore(path, arguments.column, source, output, restart=arguments.restart)
    if not path.exists():
        raise FileError(f"There is no index {path}.")
    return ParquetStore(
        path,
        arguments.column,
        arguments.vector_column,
        source,
        output,
        restart=arguments.restart,
    )


def _open_table(arguments: argparse.Namespace) -> Store:
    if arguments.table is None or arguments.texts is not None or arguments.output is not None:
        raise DatabaseError("A database needs --table NAME, and neither --texts nor --output.")
    try:
        from embedserve_client.migration.pgvector_store import PgVectorStore
    except ImportError:
        raise DatabaseError(
            "PostgreSQL needs psycopg: pip install 'embedserve-client[pgvector]'"
        ) from None
    return PgVectorStore(
        arguments.index,
        arguments.table,
        arguments.column,
        arguments.vector_column,
        restart=arguments.restart,
    )


def _options(arguments: argparse.Namespace) -> MigrationOptions:
    embed: EmbedOptions = {
        "lane": "bulk",
        "input_type": arguments.input_type,
        "truncation": arguments.truncation,
    }
    if arguments.model is not None:
        embed["model"] = arguments.model
    if arguments.dimensions is not None:
        embed["dimensions"] = arguments.dimensions
    return MigrationOptions(
        embed,
        arguments.batch_size,
        arguments.concurrency,
        arguments.rate,
        arguments.on_empty,
        arguments.sample,
        arguments.min_agreement,
        not arguments.no_switch,
        arguments.force,
    )


def _report_text(report: Report, min_agreement: float, summary: str) -> str:
    if report.already_there:
        return (
            f"The vectors of {report.index} are already in space {report.space}. Embed them again "
            "with --force."
        )
    rate = report.embedded / report.seconds if report.seconds else 0.0
    lines = [
        f"Embedded {report.embedded:,} texts in {report.seconds:,.0f} s, {rate:,.0f} texts/s"
        + (f", after {report.resumed_at:,} rows of earlier runs" if report.resumed_at else "")
        + f". Old space: {report.old_space or 'unknown'}. New space: {report.space}."
    ]
    found = report.agreement
    if found is not None:
        cosine = "" if found.mean_cosine is None else f" Mean cosine: {found.mean_cosine:.3f}."
        lines.append(
            f"Of the {found.neighbours} nearest neighbours, {found.kept:.1%} are the same, and the "
            f"nearest one for {found.kept_first:.1%} of the queries ({found.queries:,} queries "
            f"among {found.rows:,} sampled rows, seed {SEED}).{cosine}"
        )
    if report.switched:
        lines.append(f"All {report.rows:,} rows have new vectors. {summary}".rstrip())
    elif found is not None and found.kept < min_agreement:
        lines.append(
            f"The agreement is below {min_agreement:.1%}, so the old vectors stay in use. Run the "
            "command without --min-agreement to replace them."
        )
    else:
        lines.append(
            "The old vectors stay in use. Run the command without --no-switch to replace them."
        )
    return "\n".join(lines)


def _print(console: Console, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)
