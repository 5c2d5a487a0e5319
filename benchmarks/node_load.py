"""Clients of a cluster, which compare each vector and record each request."""

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import NamedTuple, Self

import numpy as np

from serve_app.config.model import ModelConfig
from serve_app.engines.hashing_engine import HashingEngine
from serve_app.models import resolve

MODEL = {"name": "hashing", "source": "hashing:64"}
#: A request without an answer after this time counts as lost.
_LOST_AFTER_S = 60.0
_PAUSE_S = 0.03
_RECOVERED_REQUESTS, _RECOVERED_LATENCY_S = 50, 0.5
_PENDING_S = 1.0
_REFUSALS = (http.HTTPStatus.TOO_MANY_REQUESTS, http.HTTPStatus.SERVICE_UNAVAILABLE)


class Request(NamedTuple):
    """One request of a client; times are those of the monotonic clock."""

    address: str  #: of the machine that answered, or was to answer
    started_s: float
    ended_s: float
    error: str  #: empty: the vectors are right
    kind: str  #: right, wrong, refused, failed or lost
    repeated: int  #: how often the client sent it to another machine because one wasn't reachable


class Outcome(NamedTuple):
    """What the clients saw of one event."""

    event: str
    sent: int
    right: int
    repeated: int
    unreachable: int
    refused: int
    failed: int
    lost: int
    wrong: int
    worst_s: float
    silence_s: float
    recovered_s: float


class Load:
    """Closed-loop clients: some of one machine each, and some that use all of them.

    The latter send a request to the next machine if one refuses the connection or breaks it off, as
    clients with several addresses do. The others don't repeat requests.
    """

    def __init__(self, port: int) -> None:
        """A load without clients.

        Args:
            port: of HTTP on each machine.
        """
        self.requests: list[Request] = []
        self._port = port
        self._stopped = threading.Event()
        self._in_flight: dict[int, tuple[str, float]] = {}  #: address and start, by client
        self._engine = HashingEngine(resolve(ModelConfig.model_validate(MODEL)))
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(_LOST_AFTER_S)

    def add_client(self, *addresses: str) -> None:
        """Starts a client of one machine, or of several."""
        number = len(self._threads)
        thread = threading.Thread(target=self._run, args=(number, addresses), daemon=True)
        self._threads.append(thread)
        thread.start()

    def outcome(
        self, event: str, since_s: float, recovered_s: float, failed: Collection[str]
    ) -> Outcome:
        """Returns what the clients saw of the requests that ended after a moment.

        Args:
            event: its name.
            since_s: the moment.
            recovered_s: how long the cluster took to recover.
            failed: addresses of machines that failed. Their own clients can't succeed.
        """
        ended = [request for request in [*self.requests] if request.ended_s >= since_s]
        requests = [r for r in ended if r.kind == "right" or r.address not in failed]
        kinds = Counter(request.kind for request in requests)
        ends = [since_s, *sorted(r.ended_s for r in requests if not r.error)]
        return Outcome(
            event=event,
            sent=len(ended),
            unreachable=len(ended) - len(requests),
            repeated=sum(request.repeated for request in requests),
            worst_s=max((r.ended_s - r.started_s for r in requests), default=0.0),
            silence_s=max((after - before for before, after in pairwise(ends)), default=0.0),
            recovered_s=recovered_s,
            **{kind: kinds[kind] for kind in ("right", "refused", "failed", "lost", "wrong")},
        )

    def has_answered(self, address: str, since_s: float) -> bool:
        """Whether a machine answers requests as fast as without an event, after a moment.

        None that it got before, or shortly after, is in flight any more.
        """
        until_s = since_s + _PENDING_S
        if any(a == address and s < until_s for a, s in [*self._in_flight.values()]):
            return False
        since = [r for r in [*self.requests] if r.address == address and r.started_s >= since_s]
        last = since[-_RECOVERED_REQUESTS:]
        return len(last) == _RECOVERED_REQUESTS and all(
            r.kind == "right" and r.ended_s - r.started_s < _RECOVERED_LATENCY_S for r in last
        )

    def errors(self, since_s: float) -> Counter[str]:
        """Returns how often each error occurred after a moment, with the machine's address."""
        return Counter(
            f"{r.address}: {r.error}" for r in [*self.requests] if r.error and r.ended_s >= since_s
        )

    def _run(self, client: int, addresses: Sequence[str]) -> None:
        connections = [self._connect(address) for address in addresses]
        current, number = 0, 0
        while not self._stopped.is_set():
            number += 1
            texts = [f"client {client} sends text {number} at {time.monotonic()}", f"text {number}"]
            started_s, repeated = time.monotonic(), 0
            while True:
                self._in_flight[client] = addresses[current], started_s
                kind, error = self._send(connections[current], texts)
                is_broken = kind in ("failed", "lost") and not error.isdecimal()
                if is_broken:
                    connections[current].close()
                if not is_broken or repeated == len(addresses) - 1:
                    break
                repeated += 1
                current = (current + 1) % len(addresses)
            del self._in_flight[client]
            self.requests.append(
                Request(addresses[current], started_s, time.monotonic(), error, kind, repeated)
            )
            time.sleep(_PAUSE_S)
        for connection in connections:
            connection.close()

    def _connect(self, address: str) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(address, self._port, timeout=_LOST_AFTER_S)

    def _send(
        self, connection: http.client.HTTPConnection, texts: Sequence[str]
    ) -> tuple[str, str]:
        """Sends a request; returns the kind of its outcome and the error."""
        headers = {"Content-Type": "application/json"}
        try:
            connection.request("POST", "/v1/embeddings", json.dumps({"input": texts}), headers)
            response = connection.getresponse()
            body = response.read()
        except TimeoutError:
            return "lost", "TimeoutError"
        except (OSError, http.client.HTTPException) as error:
            return "failed", type(error).__name__
        if response.status in _REFUSALS and response.getheader("retry-after"):
            return "refused", str(response.status)
        if response.status != http.HTTPStatus.OK:
            return "failed", str(response.status)
        vectors = [item["embedding"] for item in json.loads(body)["data"]]
        expected = self._engine.run("embed", self._engine.tokenizer.encode(texts))
        is_right = np.shape(vectors) == expected.shape and np.allclose(vectors, expected, atol=1e-5)
        return ("right", "") if is_right else ("wrong", "other vectors")
