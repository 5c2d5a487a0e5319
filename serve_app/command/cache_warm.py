"""`embedserve cache warm`: embeds the texts of a file to fill the cache of a running service.

As a Ray job, or over HTTP.
"""

import argparse
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from embedserve_client.client import Client
from serve_app.cache.report import WarmResult
from serve_app.command.cluster import add_address_argument, connect
from serve_app.command.query_log import LogFormat, QueryLog
from serve_app.errors import ConfigurationError, EmbedServeError, Overloaded, Unavailable

#: Texts per call, and calls in flight: enough to keep every Embedder busy.
_CALL_TEXTS = 256
_MAX_CALLS = 4
_CALL_TIMEOUT_S = 300.0


def add_command(subcommands: Any) -> None:
    """Adds `warm` to the parser of `cache`."""
    warm = subcommands.add_parser(
        "warm",
        help="embed the texts of a file to fill the cache",
        description="Compute the outputs of a model for the distinct texts of a file, such as a "
        "query log, in the bulk lane, so that later requests for them are served from the cache.",
    )
    warm.add_argument("file", type=Path, help="the texts, UTF-8; see --format")
    warm.add_argument(
        "--format",
        choices=get_args(LogFormat),
        help="jsonl: each line is a string, or an object with the text under --field; csv: with a "
        "header; text: each line is a text (default: by the name of the file, otherwise jsonl)",
    )
    warm.add_argument(
        "--field", help="name of the text's field or column (default: text, or else query)"
    )
    warm.add_argument(
        "--by-frequency", action="store_true", help="embed the most frequent texts first"
    )
    warm.add_argument("--top", type=_positive, metavar="N", help="embed only the first N texts")
    warm.add_argument(
        "--skip-invalid", action="store_true", help="leave out lines that contain no valid text"
    )
    warm.add_argument(
        "--input-type",
        help="name of the model's prompt for the texts, the one that later requests use: for a "
        "query log mostly `query` (default: the model's default prompt)",
    )
    warm.add_argument("--model", help="name or alias of the model (default: the first one)")
    warm.add_argument(
        "--app", default="embedserve", help="name of the application (default: embedserve)"
    )
    warm.add_argument(
        "--url",
        help="URL of the service, such as a standalone one, to send the texts over HTTP instead of "
        "Ray; the key is EMBEDSERVE_API_KEY",
    )
    add_address_argument(warm)
    warm.set_defaults(run=_warm)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _warm(arguments: argparse.Namespace) -> int:
    log = QueryLog(
        arguments.file,
        format_=arguments.format,
        field=arguments.field,
        skip_invalid=arguments.skip_invalid,
    )
    order = {"by_frequency": arguments.by_frequency, "top": arguments.top}
    total = min(log.distinct, arguments.top or log.distinct)
    warm = _warm_over_http if arguments.url is not None else _warm_through_ray
    computed = 0
    started_at = time.monotonic()
    with _progress_bar() as progress:
        task = progress.add_task("texts", total=total)
        for result in warm(arguments, log.select(**order)):
            progress.advance(task, result.texts)
            computed += result.computed
    seconds = max(time.monotonic() - started_at, 1e-9)
    print(
        f"{total} texts in {seconds:.1f} s ({total / seconds:.0f}/s): {computed} computed, "
        f"{total - computed} already cached."
    )
    if log.skipped:
        print(f"{log.skipped} lines without a valid text were left out.")
    if total < log.total:
        share = 100 * log.count(**order) / log.total
        print(
            f"The file has {log.total} texts, {log.distinct} of them distinct. Those that are "
            f"cached now are {share:.1f} % of all."
        )
    return 0


def _warm_over_http(arguments: argparse.Namespace, texts: Iterator[str]) -> Iterator[WarmResult]:
    def call(client: Client, batch: list[str]) -> WarmResult:
        info = client.embed(
            batch, input_type=arguments.input_type, model=arguments.model, lane="bulk"
        ).info
        return WarmResult(len(batch), len(batch) - (info.cached or 0))

    with Client(arguments.url) as client, ThreadPoolExecutor(_MAX_CALLS) as threads:
        calls = _in_calls(texts, lambda batch: threads.submit(call, client, batch))
        for _, future in calls:
            yield future.result()


def _warm_through_ray(arguments: argparse.Namespace, texts: Iterator[str]) -> Iterator[WarmResult]:
    serve = connect(arguments.address)
    applications = serve.status().applications
    if arguments.app not in applications:
        raise ConfigurationError(
            f"No application {arguments.app!r} is running; running: "
            f"{', '.join(applications) or 'none'}. Select one with --app."
        )
    handle = serve.get_app_handle(arguments.app)
    options = (arguments.input_type, arguments.model)
    for batch, response in _in_calls(texts, lambda batch: handle.warm.remote(batch, *options)):
        yield _wait_for_call(handle, batch, response, *options)


def _in_calls(
    texts: Iterator[str], send: Callable[[list[str]], Any]
) -> Iterator[tuple[list[str], Any]]:
    """Yields the texts and the response of each call, with up to `_MAX_CALLS` in flight."""
    in_flight = deque[tuple[list[str], Any]]()
    while batch := list(islice(texts, _CALL_TEXTS)):
        in_flight.append((batch, send(batch)))
        if len(in_flight) == _MAX_CALLS:
            yield in_flight.popleft()
    yield from in_flight


def _wait_for_call(
    handle: Any, texts: list[str], response: Any, *options: str | None
) -> WarmResult:
    """Returns the result of a call; repeats the call while the service is overloaded."""
    while True:
        try:
            result: WarmResult | EmbedServeError = response.result(timeout_s=_CALL_TIMEOUT_S)
        except TimeoutError:
            raise Unavailable(
                f"No response for {len(texts)} texts within {_CALL_TIMEOUT_S:.0f} s."
            ) from None
        if isinstance(result, WarmResult):
            return result
        if not isinstance(result, Overloaded):
            raise result
        time.sleep(result.retry_after_s)
        response = handle.warm.remote(texts, *options)


def _progress_bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
