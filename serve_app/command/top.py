"""`embedserve top`: the live view of a running service in a terminal."""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, closing
from typing import Any

from rich.console import Console
from rich.live import Live

from embedserve_client.settings import DEFAULT_URL, EnvironmentSettings
from serve_app.command.checked_service import CheckedService
from serve_app.command.keyboard import read_keys
from serve_app.command.live_frame import MIN_WIDTH, frame
from serve_app.command.live_history import LiveHistory
from serve_app.command.live_stream import Disconnected, LiveStream, parse_snapshot, refusal
from serve_app.live.snapshot import Snapshot

_TIMEOUT_S = 30.0
#: The limits of `GET /live`.
_MIN_INTERVAL_S, _MAX_INTERVAL_S = 0.5, 10.0
#: Of a frame that isn't printed to a terminal.
_DEFAULT_WIDTH = 120

_DESCRIPTION = """\
Show what a running service does, refreshed in place: requests, latency, lanes, batches, cache,
cost, models, deployments with the reasons of the autoscaler, replicas, and API keys. After a lost
connection the command connects again. Without a terminal it prints one frame.

keys: q quits, p pauses and continues, m sorts the models by requests, queued tokens or name
"""

#: None: the window has another size.
_Input = Snapshot | Disconnected | str | Exception | None


def add_commands(commands: Any) -> None:
    """Adds `top` to the parser."""
    top = commands.add_parser(
        "top",
        help="show what a running service does",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument(
        "url",
        nargs="?",
        metavar="URL",
        help=f"URL of the service (default: EMBEDSERVE_URL, or {DEFAULT_URL})",
    )
    top.add_argument(
        "--key",
        help="API key (default: EMBEDSERVE_API_KEY, which other users of the machine don't see)",
    )
    top.add_argument(
        "--interval",
        type=_interval,
        default=1.0,
        metavar="SECONDS",
        help="time between two snapshots, from 0.5 to 10 (default: %(default)g)",
    )
    top.add_argument("--once", action="store_true", help="print one frame")
    top.add_argument("--json", action="store_true", help="print one snapshot as a line of JSON")
    top.set_defaults(run=_top)


def _interval(text: str) -> float:
    seconds = float(text)
    if not _MIN_INTERVAL_S <= seconds <= _MAX_INTERVAL_S:  # NaN is never within it
        raise argparse.ArgumentTypeError(f"{text} isn't a number of seconds from 0.5 to 10")
    return seconds


def _top(arguments: argparse.Namespace) -> int:
    with closing(CheckedService(arguments.url, arguments.key, _TIMEOUT_S)) as service:
        url = service.url
        console = Console()
        is_window = console.is_terminal and not console.is_dumb_terminal
        if arguments.json:
            print(json.dumps(_read_once(service, arguments.interval), separators=(",", ":")))
            return 0
        if arguments.once or not is_window:
            _print_once(service, arguments.interval)
            return 0
    api_key = arguments.key or EnvironmentSettings.read().api_key
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_watch(LiveStream(url, api_key, arguments.interval), console))
    return 0


def _read_once(service: CheckedService, interval_s: float) -> Snapshot:
    """Returns one snapshot with its rates.

    Raises:
        EmbedError: the service is unreachable.
        NoSnapshot: it returns none.
    """
    reply = service.get(f"/live?once=true&interval_s={interval_s:g}")
    body = reply.body if isinstance(reply.body, str) else json.dumps(reply.body)
    if reply.status != 200:
        raise refusal(service.url, reply.status, body.encode(), reply.headers.get("retry-after"))
    return parse_snapshot(service.url, body.encode())


def _print_once(service: CheckedService, interval_s: float) -> None:
    history = LiveHistory()
    history.receive(_read_once(service, interval_s))
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # sparklines need Unicode
    console = Console(width=None if sys.stdout.isatty() else _DEFAULT_WIDTH)
    console.print(frame(history, service.url, console.width))


async def _watch(stream: LiveStream, console: Console) -> None:
    """Draws the view until the user quits.

    Raises:
        EmbedError: the service is unreachable at the start.
        NoSnapshot: it refuses to send snapshots.
    """
    history = LiveHistory()
    async with aclosing(stream.events()) as events:
        # Before the screen changes, so that errors of the first attempt are read as usual.
        history.receive(await anext(events))
        inputs = asyncio.Queue[_Input]()
        with (
            Live(console=console, screen=True, auto_refresh=False) as live,
            _signals(inputs.put_nowait),
            read_keys(inputs.put_nowait, on_end=lambda: inputs.put_nowait("q")),
        ):
            pump = asyncio.create_task(_pump(events, inputs))
            try:
                while True:
                    # Of the window, whatever COLUMNS and LINES were when the command started.
                    window = os.get_terminal_size(sys.stdout.fileno())
                    if window.columns and window.lines:
                        console.size = (window.columns, window.lines)
                    width, height = console.size
                    view = frame(history, stream.url, max(MIN_WIDTH, width), height)
                    live.update(view, refresh=True)
                    if not _apply(await inputs.get(), history):
                        return
            finally:
                pump.cancel()
                await asyncio.wait({pump})


async def _pump(
    events: AsyncGenerator[Snapshot | Disconnected], inputs: asyncio.Queue[_Input]
) -> None:
    try:
        async for event in events:
            inputs.put_nowait(event)
    except Exception as error:  # raised where the terminal is restored
        inputs.put_nowait(error)


def _apply(entry: _Input, history: LiveHistory) -> bool:
    """Applies what has come; returns whether to go on."""
    match entry:
        case "q" | "Q":
            return False
        case "p" | "P" | " ":
            history.toggle_pause()
        case "m" | "M":
            history.next_order()
        case Exception():
            raise entry
        case None | str():  # the window has another size; another key
            pass
        case _:
            history.receive(entry)
    return True


@contextlib.contextmanager
def _signals(put: Callable[[_Input], None]) -> Iterator[None]:
    """Within the block, a resized window is drawn again, and a request to end ends as `q` does."""
    if sys.platform == "win32":
        yield
        return
    loop = asyncio.get_running_loop()
    entries: dict[int, str | None] = {
        signal.SIGWINCH: None,
        signal.SIGTERM: "q",
        signal.SIGHUP: "q",
    }
    for number, entry in entries.items():
        loop.add_signal_handler(number, put, entry)
    try:
        yield
    finally:
        for number in entries:
            loop.remove_signal_handler(number)
