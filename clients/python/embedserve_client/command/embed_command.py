"""`embedserve embed`: a file of texts → a file of vectors."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.progress import (
    BarColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as ProgressBar

from embedserve_client.base import ClientOptions, EmbedOptions
from embedserve_client.command.backend_options import (
    add_backend_options,
    open_backend,
    run_and_close,
)
from embedserve_client.files.job import FileJob, JobRun, OnEmpty
from embedserve_client.files.journal import Progress
from embedserve_client.files.sink import STDOUT, sink_format
from embedserve_client.files.source import STDIN, Source, SourceFormat, open_source
from embedserve_client.wire import Truncation

_EPILOG = """\
The suffix of a file selects its format. Input: .txt (one text per line), .jsonl, .csv, .parquet.
Output: .npy (one array), .jsonl or .parquet (with the texts). To resume an interrupted run, run the
same command again.

examples:
  embedserve embed texts.txt                        write texts.npy
  embedserve embed rows.csv --column body -o rows.parquet
  embedserve embed big.jsonl --start                start the service if it isn't running
  embedserve embed texts.txt --local                compute in this process, without a service
  cat texts.txt | embedserve embed -                print JSON lines
"""
#: Long enough for a service that restarts; after it the run fails and can be resumed.
_TIMEOUT_S = 600.0


def add_commands(commands: Any) -> None:
    """Adds `embed`."""
    parser = commands.add_parser(
        "embed",
        help="embed a file of any size; an interrupted run resumes",
        description="Embed a file of any size in bounded memory. An interrupted run resumes.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("file", help="file of texts, or - for standard input")
    add("-o", "--output", help="default: FILE with the suffix .npy; - for standard input")
    add("--format", choices=get_args(SourceFormat), help="input format (default: by suffix)")
    add("--column", default="text", help="field with the text (default: %(default)s)")
    add("--input-type", help="input type, which selects the prompt: query, document, …")
    add("--dimensions", type=_positive_int, help="number of leading dimensions to keep")
    add(
        "--truncation",
        choices=get_args(Truncation),
        default="end",
        help="what to do with texts beyond the token limit: cut their end or start, fail, or embed "
        "them in chunks (default: %(default)s)",
    )
    add(
        "--on-empty",
        choices=get_args(OnEmpty),
        default="error",
        help="what to do with records without text (default: %(default)s)",
    )
    add("--batch-size", type=_positive_int, default=256, help="texts per request (default: 256)")
    add("--concurrency", type=_positive_int, default=4, help="concurrent requests (default: 4)")
    add(
        "--timeout",
        type=float,
        default=_TIMEOUT_S,
        help="timeout of each request in seconds, retries included (default: %(default)g)",
    )
    add("--restart", action="store_true", help="discard the progress of an interrupted run")
    add("--overwrite", action="store_true", help="replace an existing output file")
    add("--quiet", action="store_true", help="show no progress")
    add("--json", action="store_true", help="print a summary as JSON")
    add_backend_options(parser)
    parser.set_defaults(run=_embed)


def _positive_int(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def _embed(arguments: argparse.Namespace) -> int:
    source = open_source(arguments.file, arguments.format, arguments.column)
    target = arguments.output or _default_output(arguments.file)
    sink_format(target)  # fails before a service is started
    job = FileJob(
        source,
        target,
        _embed_options(arguments),
        batch_size=arguments.batch_size,
        concurrency=arguments.concurrency,
        on_empty=arguments.on_empty,
        restart=arguments.restart,
        overwrite=arguments.overwrite,
    )
    # A restarting service may need any number of retries; only the timeout is a bound.
    options: ClientOptions = {"timeout_s": arguments.timeout, "max_retries": sys.maxsize}
    display = ProgressDisplay(source, quiet=arguments.quiet)
    with open_backend(arguments, **options) as embedder, display:
        run = JobRun(job, embedder, display.update)
        display.start(run.progress)
        started_at = time.monotonic()
        try:
            run_and_close(embedder, run.run())
        except BaseException:
            display.print_interrupted(run.progress, target)
            raise
    summary = run.summary(time.monotonic() - started_at)
    if arguments.json and target != STDOUT:
        print(json.dumps(summary))
    elif not arguments.quiet:
        display.print(_summary_text(summary))
    return 0


def _embed_options(arguments: argparse.Namespace) -> EmbedOptions:
    options: EmbedOptions = {"lane": "bulk", "truncation": arguments.truncation}
    if arguments.input_type is not None:
        options["input_type"] = arguments.input_type
    if arguments.model is not None:
        options["model"] = arguments.model
    if arguments.dimensions is not None:
        options["dimensions"] = arguments.dimensions
    return options


def _default_output(file: str) -> str:
    return STDOUT if file == STDIN else str(Path(file).with_suffix(".npy"))


def _summary_text(summary: dict[str, Any]) -> str:
    text = (
        f"Wrote {summary['rows']:,} vectors in space {summary['space']} to {summary['output']}, "
        f"{summary['texts_per_s']:,.0f} texts/s"
    )
    if summary["resumed_at"]:
        text += f"; resumed after record {summary['resumed_at']:,}"
    if summary["skipped"]:
        text += f"; skipped {summary['skipped']:,} records without text"
    if summary["truncated"]:
        text += f"; truncated {summary['truncated']:,} texts to the model's token limit"
    return f"{text}."


class ProgressDisplay:
    """A progress bar on standard error."""

    def __init__(self, source: Source, *, quiet: bool) -> None:
        self._console = Console(stderr=True, quiet=quiet)
        self._bar = ProgressBar(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[rows]:,} texts"),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._task = self._bar.add_task("embedding", total=source.size, rows=0)

    def start(self, progress: Progress) -> None:
        """Shows the progress of an interrupted run."""
        if progress.records:
            self.print(f"Resuming after record {progress.records:,}.")
        self.update(progress)

    def update(self, progress: Progress) -> None:
        """Updates the bar."""
        self._bar.update(self._task, completed=progress.offset, rows=progress.rows)

    def print_interrupted(self, progress: Progress, target: str) -> None:
        """Prints how to resume."""
        if target != STDOUT and progress.records:
            self.print(f"{progress.records:,} records are done. Run the same command to resume.")

    def print(self, text: str) -> None:
        """Prints a line above the bar."""
        self._console.print(text, highlight=False, soft_wrap=True)

    def __enter__(self) -> "ProgressDisplay":
        self._bar.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._bar.stop()
