"""The load of the fault bench: what it sends, repeats and counts."""

import http.server
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from benchmarks.faults.apis import APIS
from benchmarks.faults.ledger import Kind, Outcome
from benchmarks.faults.load import Call, Load, fetch_references, make_calls, make_texts
from benchmarks.faults.reply_check import ReplyCheck

SPACE = "0123456789abcdef-fp32"
TEXTS = make_texts(20, seed=1)
VECTORS = np.eye(20, 32, dtype=np.float32)
Mode = Callable[[str], int]


class Server(http.server.ThreadingHTTPServer):
    """A service with known vectors. `mode` returns the status of each request, by its id."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.mode: Mode = lambda request_id: 200
        self.headers: list[dict[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.headers.append(headers)
        status = self.server.mode(headers.get("x-request-id", ""))
        if status == 0:
            self.close_connection = True
            return
        texts = next(body[key] for key in ("input", "inputs", "texts") if key in body)
        reply: Any = {"error": {"message": "no"}, "detail": "no"}
        if status == 200:
            known = {text: index for index, text in enumerate(TEXTS)}
            vectors = VECTORS[[known.get(text, 0) for text in texts]].tolist()
            reply = {
                "/v1/embeddings": {"data": [{"embedding": row} for row in vectors]},
                "/v2/embed": {"embeddings": {"float": vectors}},
                "/api/embed": {"embeddings": vectors},
            }.get(self.path, vectors if "inputs" in body else {"vectors": vectors})
        content = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.send_header("x-embedding-space", SPACE)
        if status == 429:
            self.send_header("retry-after", "0")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Prints nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


def run_load(server: Server, mode: Mode, requests: int = 12) -> list[Outcome]:
    server.mode = mode
    check = ReplyCheck(VECTORS, SPACE)
    with Load(server.url, "a key", TEXTS, check, rate=200, seed=1) as load:
        deadline_s = time.monotonic() + 20
        while len(load.ledger.outcomes) < requests and time.monotonic() < deadline_s:
            time.sleep(0.01)
    return load.ledger.outcomes


def kinds(outcomes: list[Outcome]) -> set[Kind]:
    return {outcome.kind for outcome in outcomes}


def test_right_replies_of_all_apis_count_as_right(server: Server) -> None:
    outcomes = run_load(server, lambda _: 200)
    assert len(outcomes) >= 12
    assert kinds(outcomes) == {Kind.RIGHT}


def test_each_request_has_a_key_an_id_of_its_own_and_a_deadline(server: Server) -> None:
    outcomes = run_load(server, lambda _: 200)
    assert {h["authorization"] for h in server.headers} == {"Bearer a key"}
    assert sorted(h["x-request-id"] for h in server.headers) == sorted(
        outcome.request_id for outcome in outcomes
    )
    assert all(0 < float(h["x-request-timeout-s"]) <= 20 for h in server.headers)


def test_a_refused_request_is_sent_again_and_counts_once(server: Server) -> None:
    attempts = Counter[str]()

    def refuse_twice(request_id: str) -> int:
        attempts[request_id] += 1
        return 429 if attempts[request_id] <= 2 else 200

    outcomes = run_load(server, refuse_twice)
    assert kinds(outcomes) == {Kind.RIGHT}
    assert {outcome.attempts for outcome in outcomes} == {3}
    assert len(outcomes) == len(attempts)


@pytest.mark.parametrize("status", [500, 0])
def test_failures_are_not_repeated(server: Server, status: int) -> None:
    outcomes = run_load(server, lambda _: status)
    assert kinds(outcomes) == {Kind.FAILED}
    assert {outcome.attempts for outcome in outcomes} == {1}


def test_the_load_goes_on_while_nothing_answers(server: Server) -> None:
    released = threading.Event()

    def wait(_: str) -> int:
        released.wait(20)
        return 200

    server.mode = wait
    check = ReplyCheck(VECTORS, SPACE)
    with Load(server.url, "a key", TEXTS, check, rate=200, seed=1) as load:
        deadline_s = time.monotonic() + 20
        while len(load.ledger.open_requests) < 20 and time.monotonic() < deadline_s:
            time.sleep(0.01)
        released.set()
    assert len(load.ledger.outcomes) >= 20
    assert kinds(load.ledger.outcomes) == {Kind.RIGHT}


def test_references_are_the_vectors_of_all_texts_and_their_space(server: Server) -> None:
    vectors, space = fetch_references(server.url, "a key", TEXTS)
    np.testing.assert_array_equal(vectors, VECTORS)
    assert space == SPACE
    assert {h["cache-control"] for h in server.headers} == {"no-store"}


def test_calls_are_mixed_and_repeatable() -> None:
    calls = [*itertools.islice(make_calls(100, seed=3), 400)]
    assert calls == [*itertools.islice(make_calls(100, seed=3), 400)]
    assert {call.api for call in calls} == {*APIS}
    assert {len(call.texts) for call in calls} == {1, 8}
    headers = {name for call in calls for name in call.headers}
    assert headers == {"cache-control", "x-priority"}
    assert len({*make_texts(500, seed=0)}) == 500


def test_further_requests_are_sent_at_once(server: Server) -> None:
    check = ReplyCheck(VECTORS, SPACE)
    with Load(server.url, "a key", TEXTS, check, rate=1, seed=1) as load:
        load.send_at_once(30)
        deadline_s = time.monotonic() + 20
        while len(load.ledger.outcomes) < 31 and time.monotonic() < deadline_s:
            time.sleep(0.01)
    assert len(load.ledger.outcomes) >= 31
    assert kinds(load.ledger.outcomes) == {Kind.RIGHT}


def test_a_load_pauses_sends_unknown_texts_too_and_limits_its_open_requests(
    server: Server,
) -> None:
    released, waiting, peak = threading.Event(), set[str](), [0]

    def wait(request_id: str) -> int:
        waiting.add(request_id)
        peak[0] = max(peak[0], len(waiting))
        released.wait(20)
        waiting.discard(request_id)
        return 200

    server.mode = wait
    check = ReplyCheck(VECTORS, SPACE)
    calls = itertools.repeat(Call(APIS[0], [4], {}, ["a new text", "another"]))
    load = Load(server.url, "a key", TEXTS, check, rate=0, seed=1, calls=calls, max_open=3)
    with load:
        load.set_rate(500)
        deadline_s = time.monotonic() + 20
        while len(waiting) < 3 and time.monotonic() < deadline_s:
            time.sleep(0.01)
        released.set()
        while len(load.ledger.outcomes) < 30 and time.monotonic() < deadline_s:
            time.sleep(0.01)
        load.set_rate(0)
    assert peak == [3]
    assert kinds(load.ledger.outcomes) == {Kind.RIGHT}
    assert load.sent_texts == 3 * len(load.ledger.outcomes) >= 90
