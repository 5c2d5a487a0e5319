"""Sends bodies that are wrong, or half right, to every route, and looks at what comes back.

    python -m tests.fuzz --bodies 50000 --seed 1
    python -m tests.fuzz --bodies 50000 --seed 1 --url http://127.0.0.1:8000

A request depends on nothing but the seed and its number: `--only` sends one of them again.
"""

import argparse
import asyncio
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

import httpx2
import orjson
import psutil
from jsonschema import Draft202012Validator
from rich.console import Console
from rich.progress import track
from rich.table import Table
from starlette.types import ASGIApp, Message, Scope

from serve_app.config import IngressSettings
from serve_app.service.embed import EmbedService
from serve_app.web.app import create_app
from serve_app.web.dialects import endpoints, openai, views
from serve_app.web.schema.json_schema import any_of
from tests.fakes import SPEC, FakeBackend
from tests.malformed_requests import Request, request

_TIMEOUT_S = 10.0
_MIB = 1 << 20
_MAX_GROWTH = 64 * _MIB
#: An error that is longer says what the client sent, and not what is wrong with it.
_MAX_ERROR = 20_000
_CLIENT_LEFT = 499
_ITSELF = ("/docs", "/openapi.json")


class Reply(NamedTuple):
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    path: str  #: that was asked for, which clients may write otherwise than they were told to


#: What answers where a request isn't HTTP, or where it closes the connection on a body that is
#: still coming.
_SERVER = "the server itself"

Send = Callable[[Request], Coroutine[Any, Any, Reply]]


@dataclass
class Report:
    """What a run has seen."""

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    #: Numbers of the requests that were answered wrongly, and how.
    problems: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0
    warm: int = 0  #: memory in use after the first requests, in bytes; 0: not measured
    end: int = 0

    @property
    def fine(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems and self.end - self.warm <= _MAX_GROWTH


class Judge:
    """Knows what an answer must look like."""

    def __init__(self) -> None:
        shapes: dict[str, list[dict[str, Any]]] = {}
        for path, found in endpoints().items():
            shapes.setdefault(path, []).extend(one.render_error.schema for one in found)
        for view in views():
            told = [view.render_error.schema, *([view.reply] if view.statuses else [])]
            shapes.setdefault(view.path.partition("{")[0], []).extend(told)
        self._empty_401 = {path for path, found in endpoints().items() if found[0].dialect == "TEI"}
        self._errors = {path: Draft202012Validator(any_of(*all_)) for path, all_ in shapes.items()}
        self._unknown = Draft202012Validator(openai.render_error.schema)

    def route(self, reply: Reply) -> str:
        """What an answer is counted under."""
        path = reply.path
        media_type = reply.headers.get("content-type", "")
        if "x-embedding-space" not in reply.headers and media_type.startswith("text/plain"):
            return _SERVER
        if path.startswith("/v1/models/"):
            return "/v1/models/"
        return path if path in self._errors or path in _ITSELF else "elsewhere"

    def fault(self, sent: Request, reply: Reply) -> str | None:
        """What is wrong with an answer."""
        status = reply.status
        if status >= 500 and status != 503:
            return f"{status}: {reply.body[:200]!r}"
        if status == _CLIENT_LEFT or self.route(reply) == _SERVER:
            return None
        if "x-embedding-space" not in reply.headers and status >= 400:
            return "no x-embedding-space"
        if status < 400 or sent.method == "HEAD":
            return self._unreadable(reply)
        return self._misshapen(reply)

    def _unreadable(self, reply: Reply) -> str | None:
        if reply.headers.get("content-type") != "application/json" or not reply.body:
            return None
        try:
            orjson.loads(reply.body)
        except orjson.JSONDecodeError as error:
            return f"a reply that isn't JSON: {error}"
        return None

    def _misshapen(self, reply: Reply) -> str | None:
        path = self.route(reply)
        if reply.status == 401 and path in self._empty_401:
            return None if not reply.body else "a body of a 401, where the dialect has none"
        if len(reply.body) > _MAX_ERROR:
            return f"an error of {len(reply.body)} bytes"
        try:
            told = orjson.loads(reply.body)
        except orjson.JSONDecodeError:
            return f"an error that isn't JSON: {reply.body[:200]!r}"
        if not self._errors.get(path, self._unknown).is_valid(told):
            return f"an error of another dialect: {reply.body[:200]!r}"
        return None


def in_process(app: ASGIApp) -> Send:
    """Calls an application, as a server would."""

    async def send(sent: Request) -> Reply:
        incoming = [*_incoming(sent)]
        replies: list[Message] = []

        async def receive() -> Message:
            return incoming.pop(0) if incoming else {"type": "http.disconnect"}

        async def reply(message: Message) -> None:
            replies.append(message)

        try:
            await app(_scope(sent), receive, reply)
        except Exception:
            if not replies:  # else Starlette has answered, and only tells the server of it
                raise
        start = replies[0]
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in start["headers"]
        }
        body = b"".join(message.get("body", b"") for message in replies[1:])
        return Reply(start["status"], headers, body, sent.path)

    return send


def _scope(sent: Request) -> Scope:
    path = unquote_to_bytes(sent.path).decode("utf-8", "replace")
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": sent.method,
        "scheme": "http",
        "path": path,
        "raw_path": sent.path.encode(),
        "root_path": "",
        "query_string": sent.query.encode(),
        "headers": [(name.encode(), value) for name, value in sent.headers],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }


def _incoming(sent: Request) -> Iterator[Message]:
    size = max(1, -(-len(sent.body) // sent.chunks))
    for i in range(0, len(sent.body) or 1, size):
        yield {
            "type": "http.request",
            "body": sent.body[i : i + size],
            "more_body": i + size < len(sent.body) or sent.leaves,
        }


def over_http(client: httpx2.AsyncClient) -> Send:
    """Asks a running service."""

    async def send(sent: Request) -> Reply:
        url = sent.path + (f"?{sent.query}" if sent.query else "")
        # The client sends what belongs to the connection itself.
        own = ("content-length", "transfer-encoding", "host", "connection", "expect")
        headers = [(name.encode(), value) for name, value in sent.headers if name not in own]
        try:
            got = await client.request(sent.method, url, content=sent.body, headers=headers)
        except (httpx2.ReadError, httpx2.WriteError, httpx2.RemoteProtocolError):
            if len(sent.body) <= IngressSettings().max_body_bytes:
                raise
            return Reply(413, {"content-type": "text/plain"}, b"", sent.path)
        return Reply(got.status_code, got.headers, got.content, got.url.path)

    return send


async def run(
    send: Send, numbers: Sequence[int], seed: int, *, workers: int = 1, here: bool = True
) -> Report:
    """Sends requests and judges the answers.

    Args:
        send: how.
        numbers: which.
        seed: of what they are made of.
        workers: how many are on their way at a time.
        here: whether the service is in this process, so that its memory can be told.
    """
    report, judge = Report(), Judge()
    waiting = iter(track(numbers, "Sending", console=Console(stderr=True), transient=True))
    warm_at = numbers[len(numbers) // 5]
    started = time.perf_counter()

    async def work() -> None:
        for number in waiting:
            if here and number == warm_at:
                report.warm = psutil.Process().memory_info().rss
            await _one(send, request(seed, number), number, judge, report)

    await asyncio.gather(*(work() for _ in range(workers)))
    report.seconds = time.perf_counter() - started
    report.end = psutil.Process().memory_info().rss if here else 0
    return report


async def _one(send: Send, sent: Request, number: int, judge: Judge, report: Report) -> None:
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            reply = await send(sent)
    except TimeoutError:
        report.problems[number] = f"no answer within {_TIMEOUT_S:g} s"
        return
    except (httpx2.LocalProtocolError, httpx2.InvalidURL):
        return  # the client itself doesn't send such a thing
    except Exception as error:
        report.problems[number] = repr(error)
        return
    report.statuses[judge.route(reply), reply.status] += 1
    fault = judge.fault(sent, reply)
    if fault is not None:
        report.problems[number] = fault


def _show(report: Report, seed: int, console: Console) -> None:
    table = Table("route", "answers, by status")
    by_route: dict[str, list[str]] = {}
    for (route, status), n in sorted(report.statuses.items()):
        by_route.setdefault(route, []).append(f"{status}: {n}")
    for route, counts in by_route.items():
        table.add_row(route, "  ".join(counts))
    console.print(table)
    total = sum(report.statuses.values())
    console.print(f"{total} answers in {report.seconds:.1f} s")
    if report.warm:
        console.print(
            f"memory: {report.warm // _MIB} MiB at first, {report.end // _MIB} at the end"
        )
    for number, fault in sorted(report.problems.items())[:20]:
        console.print(f"--seed {seed} --only {number}: {fault}", markup=False)
    console.print("fine" if report.fine else f"WRONG: {len(report.problems)} answers, or memory")


def application() -> ASGIApp:
    """The service with nothing but a fake behind it, that remembers nothing."""
    return create_app(EmbedService(SPEC, _Forgetful(), IngressSettings()))


class _Forgetful(FakeBackend):
    async def embed(self, group: Any) -> Any:
        self.groups.clear()
        return await super().embed(group)


async def _main(args: argparse.Namespace) -> Report:
    numbers = range(args.bodies) if args.only is None else [args.only]
    if args.url is None:
        return await run(in_process(application()), numbers, args.seed)
    async with httpx2.AsyncClient(base_url=args.url, timeout=_TIMEOUT_S) as client:
        return await run(over_http(client), numbers, args.seed, workers=16, here=False)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 1: something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--bodies", type=int, default=50_000, help="how many are sent")
    parser.add_argument("--seed", type=int, default=1, help="of what they are made of")
    parser.add_argument("--only", type=int, help="number of the only one to send")
    parser.add_argument("--url", help="a running service; without it one in this process is asked")
    args = parser.parse_args(argv)
    console = Console(soft_wrap=True)
    if args.only is not None:
        console.print(request(args.seed, args.only), markup=False)
    logging.disable(logging.CRITICAL)
    try:
        report = asyncio.run(_main(args))
    finally:
        logging.disable(logging.NOTSET)
    _show(report, args.seed, console)
    return 0 if report.fine else 1


if __name__ == "__main__":
    sys.exit(main())
