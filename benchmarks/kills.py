"""Processes of a service are killed under load: failed requests, and seconds without a reply.

    python -m benchmarks.kills                            the default configuration
    python -m benchmarks.kills my.yaml --kill Embedder --rounds 3

Clients send one request after another, always with a new text, without retries. A row of the table
is the median of the rounds: of the requests in flight at the kill, how many failed; how many later
ones failed; the longest time in which no client got a vector.
"""

import argparse
import http.client
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import NamedTuple

from serve_app.command.ports import free_port

from .service_processes import NAMES, select
from .usage import process_tree

#: The processes of serve_config.yaml.
_DEFAULT = [name for name in NAMES if name != "EmbedServer"]
_CLIENTS = 8
_WARM_UP_S = 3.0
_SETTLE_S = 4.0
_START_TIMEOUT_S = 180.0
_RECOVERY_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 90.0


class Request(NamedTuple):
    """One request of a client; times are those of the monotonic clock."""

    started_at: float
    ended_at: float
    error: str  #: empty: it succeeded


class Load:
    """Closed-loop clients that record each of their requests."""

    def __init__(self, port: int) -> None:
        self.requests: list[Request] = []
        self._port = port
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(i,)) for i in range(_CLIENTS)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def successes_since(self, moment: float) -> int:
        """Returns the number of successful requests that started after a moment."""
        return sum(not r.error and r.started_at > moment for r in self.requests)

    def _run(self, client: int) -> None:
        connection = self._connect()
        while not self._stopped.is_set():
            started_at, error = time.monotonic(), ""
            body = json.dumps({"input": f"client {client} at {started_at}"})
            try:
                headers = {"Content-Type": "application/json"}
                connection.request("POST", "/v1/embeddings", body, headers)
                response = connection.getresponse()
                response.read()
                if response.status != http.HTTPStatus.OK:
                    error = str(response.status)
            except (OSError, http.client.HTTPException) as exception:
                error = type(exception).__name__
                connection.close()
                connection = self._connect()
            self.requests.append(Request(started_at, time.monotonic(), error))
            if error:
                time.sleep(0.05)
        connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self._port, timeout=_RECOVERY_TIMEOUT_S)


class Outcome(NamedTuple):
    """What the clients saw of one kill."""

    in_flight_failed: int
    later_failed: int
    silence_s: float


@contextmanager
def running_service(config: str | None) -> Iterator[tuple[int, int]]:
    """Yields the process id and the port of a service that answers."""
    port = free_port()
    command = [sys.executable, "-m", "embedserve_client.command.main", "serve"]
    command += [config] if config else []
    with tempfile.TemporaryDirectory(prefix="es-", dir="/tmp") as scratch:
        service = subprocess.Popen(
            [*command, "--port", str(port)],
            env={**os.environ, "RAY_TMPDIR": scratch, "RAY_ADDRESS": "local"},
            stdout=sys.stderr,
        )
        try:
            wait_until_ready(port)
            yield service.pid, port
        finally:
            service.send_signal(signal.SIGINT)
            service.wait(_STOP_TIMEOUT_S)


def wait_until_ready(port: int) -> None:
    """Waits until the service is healthy.

    Raises:
        TimeoutError: it isn't in time.
    """
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        with suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/health")
            if connection.getresponse().status == http.HTTPStatus.OK:
                return
        connection.close()
        time.sleep(0.5)
    raise TimeoutError("The service is not ready.")


def measure(service_pid: int, port: int, name: str) -> Outcome:
    """Kills the processes of a name under load, and returns what the clients saw."""
    with Load(port) as load:
        time.sleep(_WARM_UP_S)
        processes = select(process_tree(service_pid), name)
        if not processes:
            raise SystemExit(f"No process {name} runs.")
        killed_at = time.monotonic()
        for process in processes:
            process.kill()
        deadline = killed_at + _RECOVERY_TIMEOUT_S
        while load.successes_since(killed_at + _SETTLE_S) < _CLIENTS:
            if time.monotonic() > deadline:
                break
            time.sleep(0.2)
        time.sleep(_SETTLE_S)
    failed = [request for request in load.requests if request.error]
    for error, n in Counter(request.error for request in failed).items():
        print(f"{name}: {n} x {error}", file=sys.stderr)
    in_flight = sum(r.started_at < killed_at <= r.ended_at for r in failed)
    later = sum(r.started_at >= killed_at for r in failed)
    ends = sorted(r.ended_at for r in load.requests if not r.error)
    silence_s = max(after - before for before, after in pairwise(ends))
    return Outcome(in_flight, later, silence_s)


def main() -> int:
    """Measures each kill and prints a Markdown table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kills")
    parser.add_argument("config", nargs="?", help="default: serve_config.yaml")
    parser.add_argument("--kill", nargs="+", choices=NAMES, default=_DEFAULT, help="default: all")
    parser.add_argument("--rounds", type=int, default=1, help="default: %(default)s")
    arguments = parser.parse_args()
    print("| killed | in flight, failed | later, failed | seconds without a reply |")
    print("|---|---|---|---|", flush=True)
    with running_service(arguments.config) as (service_pid, port):
        for name in arguments.kill:
            outcomes = []
            for _ in range(arguments.rounds):
                outcomes.append(measure(service_pid, port, name))
                wait_until_ready(port)
                print(f"{name}: {outcomes[-1]}", file=sys.stderr, flush=True)
            medians = [statistics.median(values) for values in zip(*outcomes, strict=True)]
            cells = " | ".join(f"{value:.3g}" for value in medians)
            print(f"| {name} | {cells} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
