"""`embedserve embed`: a file of texts into a file of vectors."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from embedserve_client.base import How, Settings
from embedserve_client.command.whom import add_whom, finish, whom
from embedserve_client.files.job import FileJob, OnEmpty, Run
from embedserve_client.files.journal import Progress as Done
from embedserve_client.files.sink import sink_kind
from embedserve_client.files.source import STDIN, Kind, Source, open_source
from embedserve_client.retry import Retry
from embedserve_client.wire import Overflow

_EXAMPLES = """\
A file is read as what its name ends in: .txt (a text a line), .jsonl, .csv, .parquet. Vectors are
written as what the output's name ends in: .npy (one array), .jsonl or .parquet (with the texts).
A run that was interrupted goes on where it was when the same command is given again.

examples:
  embedserve embed texts.txt                        into texts.npy
  embedserve embed rows.csv --column body -o rows.parquet
  embedserve embed big.jsonl --start                start the service for it
  embedserve embed texts.txt --local                without any service
  cat texts.txt | embedserve embed -                JSON lines to standard output
"""
#: So long a batch waits for a service that is away or full; then what is done stays.
_PATIENCE_S = 600.0


def add_commands(commands: Any) -> None:
    """Adds `embed`."""
    parser = commands.add_parser(
        "embed",
        help="embed a file of texts; can be interrupted and gone on with",
        description="Embeds a file of texts, in bounded memory, whatever its size.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("file", help="texts, or - for standard input")
    add("-o", "--output", help="default: the file's name, with .npy; of standard input: -")
    add("--format", choices=get_args(Kind), help="of the input, where its name doesn't tell")
    add("--column", default="text", help="the field that holds the text (default: %(default)s)")
    add("--input-type", help="the model's prompt to put before each: query, document, …")
    add("--dimensions", type=_count, help="keep only so many of each vector")
    add("--overflow", choices=get_args(Overflow), default="end", help="of texts too long: cut off")
    add("--on-empty", choices=get_args(OnEmpty), default="error", help="of records without text")
    add("--batch-size", type=_count, default=256, help="texts in a request (default: %(default)s)")
    add("--concurrency", type=_count, default=4, help="requests under way (default: %(default)s)")
    add("--patience", type=float, default=_PATIENCE_S, help="seconds that a batch may take")
    add("--restart", action="store_true", help="forget what an interrupted run has done")
    add("--overwrite", action="store_true", help="replace an output that is there")
    add("--quiet", action="store_true", help="show no progress")
    add("--json", action="store_true", help="print what was done as JSON")
    add_whom(parser)
    parser.set_defaults(run=_embed)


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


def _embed(arguments: argparse.Namespace) -> int:
    source = open_source(arguments.file, arguments.format, arguments.column)
    target = arguments.output or _beside(arguments.file)
    sink_kind(target)
    job = FileJob(
        source,
        target,
        _how(arguments),
        batch_size=arguments.batch_size,
        concurrency=arguments.concurrency,
        on_empty=arguments.on_empty,
        restart=arguments.restart,
        overwrite=arguments.overwrite,
    )
    # A service may be away for longer than a few tries: the time is the bound, not their number.
    settings: Settings = {"timeout_s": arguments.patience, "retry": Retry(attempts=sys.maxsize)}
    shown = Display(source, quiet=arguments.quiet)
    with whom(arguments, **settings) as embedder, shown:
        run = Run(job, embedder, shown.update)
        shown.begin(run.progress)
        began = time.monotonic()
        try:
            finish(embedder, run.run())
        except BaseException:
            shown.interrupted(run.progress, target)
            raise
    summary = run.summary(time.monotonic() - began)
    if arguments.json and target != "-":
        print(json.dumps(summary))
    elif not arguments.quiet:
        shown.say(_told(summary))
    return 0


def _how(arguments: argparse.Namespace) -> How:
    how: How = {"lane": "bulk", "overflow": arguments.overflow}
    if arguments.input_type is not None:
        how["input_type"] = arguments.input_type
    if arguments.dimensions is not None:
        how["dimensions"] = arguments.dimensions
    return how


def _beside(file: str) -> str:
    return "-" if file == STDIN else str(Path(file).with_suffix(".npy"))


def _told(summary: dict[str, Any]) -> str:
    text = (
        f"{summary['rows']:,} vectors in {summary['output']}, of the space {summary['space']}; "
        f"{summary['texts_per_s']:,.0f} texts/s"
    )
    if summary["resumed_at"]:
        text += f"; went on behind record {summary['resumed_at']:,}"
    if summary["skipped"]:
        text += f"; {summary['skipped']:,} records without text were left out"
    if summary["truncated"]:
        text += f"; {summary['truncated']:,} texts were too long for the model and were cut"
    return f"{text}."


class Display:
    """A bar on the standard error."""

    def __init__(self, source: Source, *, quiet: bool) -> None:
        self._console = Console(stderr=True, quiet=quiet)
        self._total = source.total
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[rows]:,} texts"),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._task = self._bar.add_task("embedding", total=self._total, rows=0)

    def begin(self, done: Done) -> None:
        """Shows where an earlier run came to."""
        if done.records:
            self.say(f"Going on behind record {done.records:,}.")
        self.update(done)

    def update(self, done: Done) -> None:
        """Shows how far it is."""
        self._bar.update(self._task, completed=done.at, rows=done.rows)

    def interrupted(self, done: Done, target: str) -> None:
        """Says how to go on."""
        if target != "-" and done.records:
            self.say(f"{done.records:,} records are done; the same command goes on there.")

    def say(self, text: str) -> None:
        """Prints a line."""
        self._console.print(text, highlight=False, soft_wrap=True)

    def __enter__(self) -> "Display":
        self._bar.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        self._bar.stop()
