"""What tracing costs a query that is cached, in one process without a network.

    python -m benchmarks.tracing                     off, and with samples of 1 % and 100 %
    python -m benchmarks.tracing --against OTHER     alternated with the checkout in OTHER

Each figure is that of the fastest block of requests in any round, each round in a fresh process, in
microseconds of a request. The spans go to a collector that reads and discards them.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_RATIOS = {"off": None, "1 %": 0.01, "100 %": 1.0}
#: Runs in a fresh process; prints microseconds, and the memory of the process in MB.
_REQUESTS = """
import asyncio, json, sys, time
import psutil, uvloop
from serve_app.config import AppConfig, EmbedServerSettings
from serve_app.model_prep.engine_selection import select_engines
from serve_app.standalone import StandaloneService

BODY = json.dumps({"input": "a query"}).encode()
HEADERS = [(b"content-type", b"application/json"), (b"content-length", str(len(BODY)).encode())]

async def request(app):
    messages, parts = [], [{"type": "http.request", "body": BODY, "more_body": False}]
    async def receive():
        return parts.pop() if parts else await asyncio.Event().wait()  # the client stays
    async def send(message):
        messages.append(message)
    await app({"type": "http", "method": "POST", "path": "/v1/embeddings", "headers": [*HEADERS],
               "query_string": b"", "http_version": "1.1", "scheme": "http"}, receive, send)
    return messages[0]

async def main(args, requests, blocks):
    config = AppConfig.parse(args)
    service = StandaloneService(config, select_engines(config), EmbedServerSettings(), "benchmark")
    await service.start()
    await request(service.app)
    head = await request(service.app)
    assert head["status"] == 200 and b"hits=1" in dict(head["headers"])[b"x-cache"], head
    seconds = []
    for _ in range(blocks):
        started_s = time.perf_counter()
        for _ in range(requests):
            await request(service.app)
        seconds.append((time.perf_counter() - started_s) / requests)
    megabytes = psutil.Process().memory_info().rss / 1e6
    print(json.dumps({"microseconds": 1e6 * min(seconds), "megabytes": megabytes}))
    await service.stop()

uvloop.run(main(*json.loads(sys.argv[1])))
"""


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=2000, help="in a block")
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--against", type=Path, help="another checkout of the repository")
    arguments = parser.parse_args()
    columns = {name: (_ROOT, ratio) for name, ratio in _RATIOS.items()}
    if arguments.against:
        columns = {"other checkout": (arguments.against, None), **columns}
    rounds = {name: list[Mapping[str, float]]() for name in columns}
    with _collector() as url:
        for _ in range(arguments.rounds):
            for name, (checkout, ratio) in columns.items():
                tracing = {} if ratio is None else _tracing(url, ratio)
                size = (arguments.requests, arguments.blocks)
                rounds[name].append(_measure(checkout, tracing, size))
                print(name, rounds[name][-1], file=sys.stderr)
    print(f"| | {' | '.join(rounds)} |", f"|---|{'---|' * len(rounds)}", sep="\n")
    for key in ("microseconds", "megabytes"):
        cells = [f"{min(one[key] for one in all_):.1f}" for all_ in rounds.values()]
        print(f"| {key} | {' | '.join(cells)} |")


def _tracing(url: str, ratio: float) -> dict[str, object]:
    return {"tracing": {"endpoint": url, "sample_ratio": ratio}}


def _measure(
    checkout: Path, tracing: Mapping[str, object], size: tuple[int, int]
) -> Mapping[str, float]:
    model = {"name": "words", "source": "hashing:384"}
    args = {"model": model, "cache": {"url": "none"}, **tracing}
    output = subprocess.run(
        [sys.executable, "-c", _REQUESTS, json.dumps([args, *size])],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        capture_output=True,
        check=True,
    ).stdout
    figures: Mapping[str, float] = json.loads(output.splitlines()[-1])
    return figures


@contextmanager
def _collector() -> Iterator[str]:
    """Runs a collector that discards spans, and yields its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            """Reads spans and answers."""
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Prints nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


if __name__ == "__main__":
    main()
