"""Fuzzer: sends raw bytes to a running service through HAProxy and checks each response.

    python -m tests.raw_fuzz --url http://127.0.0.1:8000 --requests 20000 --seed 1

An exchange is a function of the seed and its number: `--only` sends a single one again. Afterwards
clients leave the service before it responds, and the run checks how much was computed for them. The
service must have no other clients meanwhile.
"""

import argparse
import asyncio
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx2
import orjson
from rich.console import Console
from rich.progress import track

from tests import leaving_clients
from tests.malformed_requests import malformed_request

#: Longer than the service waits for a body and then discards the rest of it.
_TIMEOUT_S = 90.0
_KNOWN_TEXT = "The raw bytes of other clients do not change this vector."
_BUFFER_BYTES = 32_000  #: a little less than HAProxy's buffer holds
_FRAMING = ("content-length", "transfer-encoding", "connection", "host")
_ODD_HEADERS = (
    *(b"x-session-id: caf\xe9", b"x-request-timeout-seconds: \xff"),
    *(b"x-request-timeout-seconds: 0.0001", b"x-request-timeout-seconds: abc"),
    *(b"serve_multiplexed_model_id: \xff", b"x-request-disconnect-disabled: \xff"),
    *(b"x-request-id: \xff\xfe", b"x-request-id:", b"Accept: */*\r\nAccept: text/html"),
    *(b"Content-Type: application/json\r\nContent-Type: text/plain", b"Expect: 100-continue"),
    b"Content-Type: application/json, application/json",
    *(b"X-Priority: bulk\r\nX-Priority: bulk", b"X-Folded: a\r\n b\r\n\tc", b"Expect: x"),
    *(b"Content-Encoding: gzip", b"Accept-Charset: \x01\x7f"),
)
#: Headers after which a request may not be valid HTTP, or its end may not be where it seems.
_INVALID_HEADERS = (
    *(b"Content-Length: -1", b"Content-Length: 1\r\nContent-Length: 2", b"Content-Length: 1e3"),
    *(b"Content-Length: 99999999999", b"Transfer-Encoding: x", b"Transfer-Encoding: chunked"),
    *(b"Content-Length: 3\r\nTransfer-Encoding: chunked", b"Bad Name: x", b": x", b"no colon"),
    *(b"X-Nul: a\x00b", b"X-Large: " + b"x" * 40_000, b"\r\n".join([b"X-Many: x"] * 1200)),
    b"Connection: upgrade\r\nUpgrade: websocket",  # HAProxy accepts it only without a body
    *(b"Host: a\r\nHost: b", b"X-Bare: a\rb", b"Transfer-Encoding: gzip, chunked"),
)
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_NOT_HTTP = (b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"\x00" * 40, b"GET / HTTP/9.9\r\n\r\n")


class Exchange(NamedTuple):
    """What a client sends on one connection, and how."""

    segments: list[bytes]
    pauses_s: list[float]  #: after each segment
    methods: list[str]  #: of the requests
    path: str  #: of the last request
    valid: bool  #: whether each request is valid HTTP and complete
    half_closes: bool  #: whether the client closes its sending side after the last segment
    leaves: bool  #: whether the client closes the connection without reading


class Response(NamedTuple):
    """An HTTP response."""

    status: int
    headers: dict[str, str]
    body: bytes


def _built_in(status: int, reason: str, message: str, **headers: str) -> Response:
    body = f"<html><body><h1>{status} {reason}</h1>\n{message}\n</body></html>\n".encode()
    size = {"content-length": str(len(body)), "cache-control": "no-cache"}
    return Response(status, {**size, "content-type": "text/html", **headers}, body)


#: Responses of HAProxy 2.8 to bytes that it can't parse. docs/architecture.md says when.
_BUILT_IN = (
    _built_in(400, "Bad request", "Your browser sent an invalid request.", connection="close"),
    _built_in(
        408,
        "Request Time-out",
        "Your browser didn't send a complete request in time.",
        connection="close",
    ),
    _built_in(413, "Payload Too Large", "The request entity exceeds the maximum allowed."),
    _built_in(
        422, "Unprocessable Content", "The server cannot process the contained instructions."
    ),
)


@dataclass
class Report:
    """The result of a run."""

    statuses: Counter[str] = field(default_factory=Counter)
    problems: dict[int, str] = field(default_factory=dict)  #: by number of the exchange


def exchange(seed: int, number: int) -> Exchange:
    """Returns exchange number `number`, a function of the arguments alone."""
    rng = random.Random(f"raw/{seed}/{number}")
    n = rng.choice([1] * 9 + [rng.randint(2, 3)])
    raw, methods, path, valid = b"", [], "/", True
    for i in range(n):
        one, method, path, one_valid = _request(rng, seed, number * 4 + i, last=i == n - 1)
        raw += one
        methods.append(method)
        valid = valid and one_valid
    if rng.random() < 0.03:
        raw, valid = rng.choice(_NOT_HTTP) + (raw if rng.random() < 0.5 else b""), False
    if rng.random() < 0.03:
        raw, valid = raw[: rng.randrange(1, len(raw))], False
    # HAProxy may reject a request if it and the one before it exceed its buffer.
    valid = valid and (n == 1 or len(raw) < _BUFFER_BYTES)
    cuts = sorted(rng.randrange(len(raw) + 1) for _ in range(rng.choice([0, 0, 1, 2, 5])))
    head_end = raw.find(b"\r\n\r\n") + 4
    if rng.random() < 0.3:
        cuts = [head_end]
    bounds = [0, *cuts, len(raw)]
    segments = [raw[a:b] for a, b in pairwise(bounds)]
    pauses = [rng.choice([0, 0, 0, rng.uniform(0, 0.1)]) for _ in segments]
    half_closes = rng.random() < (0.05 if valid else 0.98)
    return Exchange(segments, pauses, methods, path, valid, half_closes, rng.random() < 0.08)


def _request(
    rng: random.Random, seed: int, number: int, *, last: bool
) -> tuple[bytes, str, str, bool]:
    """Returns the bytes of a request, its method and path, and whether it is valid HTTP."""
    request = malformed_request(seed, number)
    method, path, body, valid = request.method, request.path, request.body, True
    headers = [
        name.encode() + b": " + value
        for name, value in request.headers
        if name not in (*_FRAMING, "expect", "upgrade")
    ]
    match rng.randrange(20):
        case 0:
            path = "/" + path
        case 1:
            path = path.replace("/", "//")
        case 2:
            path = "http://127.0.0.1" + path
        case 3:
            path += "/"
        case 4:
            body = rng.choice([body.decode("latin-1").encode("utf-16"), b'{"input": "a\xe9\x00"}'])
    target = path + (f"?{request.query}" if request.query else "")
    version = b"HTTP/1.0" if rng.random() < 0.05 else b"HTTP/1.1"
    if version == b"HTTP/1.0":
        # HAProxy rejects bodies of other methods. It closes the connection after the response: a
        # client that goes on sending may lose it.
        valid = last and (method == "POST" or not body)
    if rng.random() < 0.3:
        headers.append(rng.choice(_ODD_HEADERS))
    if rng.random() < 0.08:
        headers.append(rng.choice(_INVALID_HEADERS))
        valid = False
    if version == b"HTTP/1.1" and rng.random() < 0.1:
        headers.append(b"Transfer-Encoding: chunked")
        body = b"".join(_chunks(rng, body))
    else:
        headers.append(b"Content-Length: %d" % len(body))
    rng.shuffle(headers)
    # The last header decides when the server closes the connection.
    headers = [b"Host: 127.0.0.1", *headers, b"Connection: close" if last else b"X-More: 1"]
    # Raw bytes above 127 in a target, and methods that HTTP parsers don't know, aren't valid.
    valid = valid and target.isascii() and method.isupper()
    # The replica closes the connection, so that a client that still sends may lose the response.
    valid = valid and not any(_CONTROL.search(header) for header in headers)
    start = b" ".join((method.encode(), target.encode(), version))
    return b"\r\n".join((start, *headers, b"", body)), method, path, valid


def _chunks(rng: random.Random, body: bytes) -> Iterator[bytes]:
    size = max(1, len(body) // rng.randint(1, 4))
    for i in range(0, len(body), size):
        chunk = body[i : i + size]
        yield b"%x\r\n%b\r\n" % (len(chunk), chunk)
    yield b"0\r\n\r\n"


def parse_responses(raw: bytes, methods: Sequence[str]) -> list[Response]:
    """Returns the complete responses in the bytes of a connection.

    Raises:
        ValueError: the bytes aren't HTTP, or the last response isn't complete.
    """
    responses: list[Response] = []
    while raw:
        head, separator, raw = raw.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        if not separator or not lines[0].startswith("HTTP/1."):
            raise ValueError(f"not an HTTP response: {head[:200]!r}")
        status = int(lines[0].split(" ")[1])
        if status < 200:
            continue
        named = (line.partition(":") for line in lines[1:])
        headers = {name.lower(): value.strip() for name, _, value in named}
        method = methods[min(len(responses), len(methods) - 1)]
        if status in (204, 304) or (method == "HEAD" and raw[:7] in (b"", b"HTTP/1.")):
            body = b""
        elif headers.get("transfer-encoding") == "chunked":
            body, raw = _unchunked(raw)
        else:
            size = int(headers.get("content-length", len(raw)))
            body, raw = raw[:size], raw[size:]
            if len(body) < size:
                raise ValueError(f"{len(body)} of {size} bytes of a response with status {status}")
        responses.append(Response(status, headers, body))
    return responses


def _unchunked(raw: bytes) -> tuple[bytes, bytes]:
    body = b""
    while True:
        line, separator, raw = raw.partition(b"\r\n")
        if not separator:
            raise ValueError("a chunked response that isn't complete")
        size = int(line, 16)
        body += raw[:size]
        raw = raw[size + 2 :]
        if size == 0:
            return body, raw


def problem(sent: Exchange, response: Response) -> str | None:
    """Returns a description of the fault of a response, or None if it is correct."""
    status, headers, body = response
    media_type = headers.get("content-type", "")
    if status >= 500:
        return f"{status}: {body[:200]!r}"
    if not sent.valid and response in _BUILT_IN:
        return None
    if status >= 400 and "/-/" not in sent.path:
        if body and not media_type.startswith("application/json"):
            return f"{status} as {media_type!r}: {body[:200]!r}"
        if headers.get("content-encoding", "identity") == "identity" and body:
            try:
                orjson.loads(body)
            except orjson.JSONDecodeError as error:
                return f"{status} that isn't JSON ({error}): {body[:200]!r}"
    return None


async def send(host: str, port: int, sent: Exchange) -> bytes:
    """Sends an exchange and returns everything until the server closes the connection.

    After invalid HTTP the server may keep the connection: a client that has not closed its sending
    side reads one response.
    """
    reader, writer = await asyncio.open_connection(host, port, limit=1 << 20)
    received = bytearray()
    try:
        with suppress(OSError):
            methods = [] if sent.valid or sent.half_closes else sent.methods
            reading = asyncio.create_task(_read(reader, received, methods))
            try:
                with suppress(OSError):
                    for segment, pause_s in zip(sent.segments, sent.pauses_s, strict=True):
                        writer.write(segment)
                        await writer.drain()
                        if pause_s:
                            await asyncio.sleep(pause_s)
                    if sent.half_closes and not sent.leaves:
                        writer.write_eof()
                if not sent.leaves:
                    await reading
            finally:
                reading.cancel()
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
    return bytes(received)


async def _read(reader: asyncio.StreamReader, received: bytearray, methods: Sequence[str]) -> None:
    """Reads until the end of the connection, or of the first response if there are methods."""
    with suppress(OSError):
        while chunk := await reader.read(65536):
            received += chunk
            with suppress(ValueError):
                if methods and parse_responses(bytes(received), methods):
                    return


async def run(url: str, numbers: Sequence[int], seed: int, *, workers: int = 16) -> Report:
    """Sends exchanges and checks the responses, the service's health and a known vector."""
    parts, report = urlsplit(url), Report()
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    remaining = iter(track(numbers, "Sending", console=Console(stderr=True), transient=True))

    async def work() -> None:
        for number in remaining:
            sent = exchange(seed, number)
            try:
                async with asyncio.timeout(_TIMEOUT_S):
                    received = await send(host, port, sent)
                _check(sent, received, report, number)
            except TimeoutError:
                report.problems[number] = f"no end of the responses within {_TIMEOUT_S:g} s"
            except ValueError as error:
                if sent.half_closes and {*sent.methods} - {"GET", "HEAD"}:
                    report.statuses["aborted after a half-close"] += 1
                else:
                    report.problems[number] = str(error)

    before = await _known_vector(url)
    await asyncio.gather(*(work() for _ in range(workers)))
    async with httpx2.AsyncClient(timeout=_TIMEOUT_S) as client:
        health = await client.get(f"{url}/health")
    if health.status_code != 200:
        report.problems[-1] = f"/health is {health.status_code} at the end"
    if await _known_vector(url) != before:
        report.problems[-2] = "the known text has another vector than at the beginning"
    return report


def _check(sent: Exchange, received: bytes, report: Report, number: int) -> None:
    """Counts the statuses of the responses and adds their problems to the report."""
    if sent.leaves:
        report.statuses["client left"] += 1
        return
    responses = parse_responses(received, sent.methods)
    if not responses:
        report.statuses["closed without a response"] += 1
        if sent.valid and not sent.half_closes:
            report.problems[number] = "closed without a response"
    for response in responses:
        origin = " of HAProxy's own" if response in _BUILT_IN else ""
        report.statuses[f"{response.status}{origin}"] += 1
        if (description := problem(sent, response)) is not None:
            report.problems[number] = description


async def _known_vector(url: str) -> list[float]:
    async with httpx2.AsyncClient(timeout=_TIMEOUT_S) as client:
        response = await client.post(f"{url}/v1/embeddings", json={"input": _KNOWN_TEXT})
    response.raise_for_status()
    vector: list[float] = response.json()["data"][0]["embedding"]
    return vector


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the fuzzer from the command line; returns 0 if no response is wrong, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.raw_fuzz", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--url", required=True, help="a running service")
    parser.add_argument("--requests", type=int, default=20_000, help="number of exchanges")
    parser.add_argument("--seed", type=int, default=1, help="seed of the exchanges")
    parser.add_argument("--only", type=int, help="send only the exchange with this number")
    parser.add_argument("--leaving", type=int, default=800, help="number of clients that leave")
    args = parser.parse_args(argv)
    console = Console(soft_wrap=True)
    if args.only is not None:
        console.print(exchange(args.seed, args.only), markup=False)
    numbers = range(args.requests) if args.only is None else [args.only]
    report = asyncio.run(run(args.url, numbers, args.seed))
    console.print(dict(report.statuses.most_common()))
    if args.only is None and args.leaving:
        for phase in asyncio.run(leaving_clients.measure(args.url, args.leaving, args.seed)):
            console.print(str(phase), markup=False)
            if phase.computed > phase.allowed:
                report.problems[-3] = f"too much was computed for clients that left: {phase}"
    for number, description in sorted(report.problems.items())[:40]:
        console.print(f"--seed {args.seed} --only {number}: {description}", markup=False)
    console.print(f"FAILED: {len(report.problems)}" if report.problems else "passed")
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
