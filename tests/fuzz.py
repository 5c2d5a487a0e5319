"""Fuzzer: sends malformed requests to every route and checks the format of each reply.

    python -m tests.fuzz --bodies 50000 --seed 1
    python -m tests.fuzz --bodies 50000 --seed 1 --url http://127.0.0.1:8000

A request is a function of the seed and its number: `--only` sends a single one again.
"""

import argparse
import asyncio
import gzip
import logging
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

import httpx2
import orjson
import psutil
from backports import zstd
from jsonschema import Draft202012Validator
from rich.console import Console
from rich.progress import track
from rich.table import Table
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Scope

from serve_app.config import IngressSettings
from serve_app.service.catalog import Catalog
from serve_app.service.embed import EmbedService
from serve_app.types import Outputs, TextGroup
from serve_app.web.app import create_app
from serve_app.web.dialect import all_views, endpoints_by_path
from serve_app.web.dialects import load_dialects
from serve_app.web.schema.json_schema import Schema, any_of
from tests.fakes import TEXT_TASKS, FakeBackend
from tests.malformed_requests import Request, malformed_request

_MIB = 1 << 20
_MAX_MEMORY_GROWTH = 64 * _MIB
#: A longer error body would echo the request.
_MAX_ERROR_BYTES = 20_000
_CLIENT_CLOSED_REQUEST = 499
_DOCUMENT_PATHS = ("/docs", "/openapi.json")


class Reply(NamedTuple):
    """An HTTP reply."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    path: str  #: as sent: HTTP clients may normalize the path of the request


#: Route of replies that the HTTP server sends itself: the request isn't valid HTTP, or it closed
#: the connection before the end of the body.
_HTTP_SERVER = "HTTP server"

#: HTTP clients unpack replies themselves.
_UNPACK: Mapping[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.decompress,
    "zstd": zstd.decompress,
}

Transport = Callable[[Request], Coroutine[Any, Any, Reply]]


@dataclass
class Report:
    """The result of a run."""

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)  #: by route and status
    problems: dict[int, str] = field(default_factory=dict)  #: by number of the request
    duration_s: float = 0.0
    warm_bytes: int = 0  #: memory in use after a fifth of the requests; 0: not measured
    end_bytes: int = 0  #: memory in use at the end

    @property
    def passed(self) -> bool:
        """Whether every reply is correct and memory is stable."""
        return not self.problems and self.end_bytes - self.warm_bytes <= _MAX_MEMORY_GROWTH


class ReplyChecker:
    """Checks replies: the status, the headers, and the error schema of the route's dialects."""

    def __init__(self) -> None:
        dialects = load_dialects()
        endpoints = endpoints_by_path(dialects)
        schemas: dict[str, list[Schema]] = {}
        for path, candidates in endpoints.items():
            schemas.setdefault(path, []).extend(dialect.error_schema for dialect, _ in candidates)
        for dialect, view in all_views(dialects):
            # A view answers an unhealthy status with its usual body.
            status_schemas = [view.reply_schema] if view.statuses else []
            schemas.setdefault(view.path, []).extend([dialect.error_schema, *status_schemas])
        self._empty_401 = {
            path for path, candidates in endpoints.items() if candidates[0].dialect.name == "TEI"
        }
        self._errors = {
            path: Draft202012Validator(any_of(*variants)) for path, variants in schemas.items()
        }
        #: Patterns of routes with parameters, the longest route first.
        self._patterns = {
            path: compile_path(path)[0]
            for path in sorted(schemas, key=len, reverse=True)
            if "{" in path
        }
        self._unknown_path = Draft202012Validator(dialects[0].error_schema)

    def route(self, reply: Reply) -> str:
        """Returns the route that a reply is counted under."""
        path = re.sub("/{2,}", "/", reply.path)
        media_type = reply.headers.get("content-type", "")
        if "x-embedding-space" not in reply.headers and media_type.startswith("text/plain"):
            return _HTTP_SERVER
        path = path.rstrip("/") or "/"
        if path in self._errors or path in _DOCUMENT_PATHS:
            return path
        matches = (route for route, regex in self._patterns.items() if regex.match(path))
        return next(matches, "other")

    def problem(self, request: Request, reply: Reply) -> str | None:
        """Returns a description of the fault of a reply, or None if it is correct."""
        status = reply.status
        if status >= 500 and status != 503:
            return f"{status}: {reply.body[:200]!r}"
        if status == _CLIENT_CLOSED_REQUEST or self.route(reply) == _HTTP_SERVER:
            return None
        if "x-embedding-space" not in reply.headers and status >= 400:
            return "no x-embedding-space"
        if status < 400 or request.method == "HEAD":
            return self._success_problem(reply)
        return self._error_problem(reply)

    def _success_problem(self, reply: Reply) -> str | None:
        if reply.headers.get("content-type") != "application/json" or not reply.body:
            return None
        try:
            orjson.loads(reply.body)
        except orjson.JSONDecodeError as error:
            return f"a reply that isn't JSON: {error}"
        return None

    def _error_problem(self, reply: Reply) -> str | None:
        path = self.route(reply)
        if reply.status == 401 and path in self._empty_401:
            return "a 401 with a body, where the dialect has none" if reply.body else None
        if len(reply.body) > _MAX_ERROR_BYTES:
            return f"an error of {len(reply.body)} bytes"
        try:
            error = orjson.loads(reply.body)
        except orjson.JSONDecodeError:
            return f"an error that isn't JSON: {reply.body[:200]!r}"
        if not self._errors.get(path, self._unknown_path).is_valid(error):
            return f"an error in the format of another dialect: {reply.body[:200]!r}"
        return None


def in_process(app: ASGIApp) -> Transport:
    """Returns a transport that calls an ASGI application, as an HTTP server does."""

    async def send(request: Request) -> Reply:
        incoming = [*_body_messages(request)]
        outgoing: list[Message] = []

        async def receive() -> Message:
            return incoming.pop(0) if incoming else {"type": "http.disconnect"}

        async def record(message: Message) -> None:
            outgoing.append(message)

        try:
            await app(_scope(request), receive, record)
        except Exception:
            # Starlette sends the reply to an unexpected error first, and then raises the error.
            if not outgoing:
                raise
        start = outgoing[0]
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in start["headers"]
        }
        body = b"".join(message.get("body", b"") for message in outgoing[1:])
        unpack = _UNPACK.get(headers.get("content-encoding", ""), bytes)
        return Reply(start["status"], headers, unpack(body), request.path)

    return send


def _scope(request: Request) -> Scope:
    path = unquote_to_bytes(request.path).decode("utf-8", "replace")
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": path,
        "raw_path": request.path.encode(),
        "root_path": "",
        "query_string": request.query.encode(),
        "headers": [(name.encode(), value) for name, value in request.headers],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }


def _body_messages(request: Request) -> Iterator[Message]:
    size = max(1, -(-len(request.body) // request.chunks))
    for i in range(0, len(request.body) or 1, size):
        yield {
            "type": "http.request",
            "body": request.body[i : i + size],
            "more_body": i + size < len(request.body) or request.disconnects,
        }


def over_http(client: httpx2.AsyncClient) -> Transport:
    """Returns a transport that sends requests to a running service."""

    async def send(request: Request) -> Reply:
        url = request.path + (f"?{request.query}" if request.query else "")
        # The HTTP client sets the headers of the connection itself.
        skipped = ("content-length", "transfer-encoding", "host", "connection", "expect")
        headers = [(name.encode(), value) for name, value in request.headers if name not in skipped]
        try:
            reply = await client.request(request.method, url, content=request.body, headers=headers)
        except (httpx2.ReadError, httpx2.WriteError, httpx2.RemoteProtocolError):
            if len(request.body) <= IngressSettings().max_body_bytes:
                raise
            return Reply(413, {"content-type": "text/plain"}, b"", request.path)
        return Reply(reply.status_code, reply.headers, reply.content, reply.url.path)

    return send


async def run(
    send: Transport,
    numbers: Sequence[int],
    seed: int,
    *,
    workers: int = 1,
    timeout_s: float = 10.0,
    measure_memory: bool = True,
) -> Report:
    """Sends requests and checks the replies.

    Args:
        send: the transport.
        numbers: numbers of the requests.
        seed: seed of the requests.
        workers: number of concurrent requests.
        timeout_s: time after which a missing reply is a problem.
        measure_memory: whether the service runs in this process, so that its memory counts.
    """
    report, checker = Report(), ReplyChecker()
    remaining = iter(track(numbers, "Sending", console=Console(stderr=True), transient=True))
    warm_at = numbers[len(numbers) // 5]
    started = time.perf_counter()

    async def work() -> None:
        for number in remaining:
            if measure_memory and number == warm_at:
                report.warm_bytes = psutil.Process().memory_info().rss
            request = malformed_request(seed, number)
            problem = await _check(send, request, timeout_s, checker, report)
            if problem is not None:
                report.problems[number] = problem

    await asyncio.gather(*(work() for _ in range(workers)))
    report.duration_s = time.perf_counter() - started
    report.end_bytes = psutil.Process().memory_info().rss if measure_memory else 0
    return report


async def _check(
    send: Transport, request: Request, timeout_s: float, checker: ReplyChecker, report: Report
) -> str | None:
    """Sends a request, counts its status, and returns the problem of the reply, or None."""
    try:
        async with asyncio.timeout(timeout_s):
            reply = await send(request)
    except TimeoutError:
        return f"no reply within {timeout_s:g} s"
    except (httpx2.LocalProtocolError, httpx2.InvalidURL):
        return None  # the HTTP client refuses to send such a request
    except Exception as error:
        return repr(error)
    report.statuses[checker.route(reply), reply.status] += 1
    return checker.problem(request, reply)


def _print_report(report: Report, seed: int, console: Console) -> None:
    table = Table("route", "replies by status")
    by_route: dict[str, list[str]] = {}
    for (route, status), n in sorted(report.statuses.items()):
        by_route.setdefault(route, []).append(f"{status}: {n}")
    for route, counts in by_route.items():
        table.add_row(route, "  ".join(counts))
    console.print(table)
    console.print(f"{report.statuses.total()} replies in {report.duration_s:.1f} s")
    if report.warm_bytes:
        warm, end = report.warm_bytes // _MIB, report.end_bytes // _MIB
        console.print(f"memory: {warm} MiB after warm-up, {end} MiB at the end")
    for number, problem in sorted(report.problems.items())[:20]:
        console.print(f"--seed {seed} --only {number}: {problem}", markup=False)
    verdict = "passed" if report.passed else f"FAILED: {len(report.problems)} replies, or memory"
    console.print(verdict)


def application() -> ASGIApp:
    """Returns the application over a fake backend that records nothing.

    Its model supports every task but `embed_sparse`, so that one route fails whatever it is sent.
    """
    spec = replace(
        TEXT_TASKS, tasks=("embed", "embed_images", "embed_tokens", "rerank", "classify")
    )
    service = EmbedService(spec, _StatelessBackend(), IngressSettings())
    return create_app(Catalog([service]))


class _StatelessBackend(FakeBackend):
    async def run(self, group: TextGroup) -> Outputs:
        self.groups.clear()
        return await super().run(group)


async def _main(args: argparse.Namespace, app: ASGIApp | None) -> Report:
    numbers = range(args.bodies) if args.only is None else [args.only]
    if args.url is None:
        return await run(in_process(app or application()), numbers, args.seed)
    async with httpx2.AsyncClient(base_url=args.url, timeout=None) as client:
        send = over_http(client)
        return await run(send, numbers, args.seed, workers=16, measure_memory=False)


def main(argv: Sequence[str] | None = None, app: ASGIApp | None = None) -> int:
    """Runs the fuzzer from the command line.

    Args:
        argv: arguments; None means those of the process.
        app: the application to test without `--url`; None means `application()`.

    Returns:
        The exit status: 0 if the run passed, else 1.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--bodies", type=int, default=50_000, help="number of requests")
    parser.add_argument("--seed", type=int, default=1, help="seed of the requests")
    parser.add_argument("--only", type=int, help="send only the request with this number")
    parser.add_argument("--url", help="a running service; default: an application in this process")
    args = parser.parse_args(argv)
    console = Console(soft_wrap=True)
    if args.only is not None:
        console.print(malformed_request(args.seed, args.only), markup=False)
    logging.disable(logging.CRITICAL)
    try:
        report = asyncio.run(_main(args, app))
    finally:
        logging.disable(logging.NOTSET)
    _print_report(report, args.seed, console)
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())
