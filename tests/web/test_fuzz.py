"""A short run of the fuzzer, and that it sees what it looks for."""

import asyncio
import json
import mmap

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from tests import fuzz
from tests.malformed_requests import Request, request


def run(app: ASGIApp, bodies: int) -> fuzz.Report:
    return asyncio.run(fuzz.run(fuzz.in_process(app), range(bodies), seed=1))


def test_whatever_comes_it_is_answered_or_refused_in_the_dialect_s_words() -> None:
    report = run(fuzz.application(), 1500)
    assert report.problems == {}
    assert report.fine
    assert sum(report.statuses.values()) == 1500
    statuses = {status for _, status in report.statuses}
    assert {200, 307, 400, 404, 405, 415, 422, 424, 499} <= statuses


def test_a_request_is_the_same_each_time() -> None:
    again = [request(1, number) for number in range(300)]
    assert again == [request(1, number) for number in range(300)]
    assert again != [request(2, number) for number in range(300)]


def answering(status: int, body: bytes, *headers: tuple[bytes, bytes]) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        named = [(b"x-embedding-space", b"1"), (b"content-type", b"application/json"), *headers]
        await send({"type": "http.response.start", "status": status, "headers": named})
        await send({"type": "http.response.body", "body": body})

    return app


async def hanging(scope: Scope, receive: Receive, send: Send) -> None:
    await asyncio.sleep(60)


async def broken(scope: Scope, receive: Receive, send: Send) -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("app", "words"),
    [
        (answering(500, b'{"error": "x", "error_type": "y"}'), "500"),
        (answering(400, b"<html>"), "isn't JSON"),
        (answering(400, b'{"nothing": 1}'), "another dialect"),
        (answering(400, b""), "isn't JSON"),
        (answering(400, json.dumps({"error": "x" * 10**6}).encode()), "of 10000"),
        (answering(200, b'{"a": '), "isn't JSON"),
        (hanging, "no answer"),
        (broken, "ZeroDivisionError"),
    ],
)
def test_it_sees_what_is_wrong(app: ASGIApp, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "_TIMEOUT_S", 0.001)
    report = run(app, 20)
    assert not report.fine
    assert any(words in fault for fault in report.problems.values())


def test_it_sees_memory_that_is_kept() -> None:
    kept: list[mmap.mmap] = []

    async def keeping(scope: Scope, receive: Receive, send: Send) -> None:
        pages = mmap.mmap(-1, 1 << 20)  # which, unlike the heap, has no room left from earlier
        pages.write(b"x" * (1 << 20))
        kept.append(pages)
        await answering(204, b"")(scope, receive, send)

    report = run(keeping, 100)
    assert report.problems == {}
    assert not report.fine


@pytest.mark.parametrize("fine", [True, False])
def test_the_command_tells_it_with_its_exit_status(
    fine: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    app = fuzz.application() if fine else broken
    monkeypatch.setattr(fuzz, "application", lambda: app)
    assert fuzz.main(["--bodies", "20", "--seed", "7"]) == (0 if fine else 1)
    told = capsys.readouterr().out
    assert ("--seed 7 --only 0: ZeroDivisionError" in told) != fine


def test_a_client_that_leaves_is_no_fault() -> None:
    sent = Request("POST", "/embed", "", [("content-type", b"application/json")], b"{", leaves=True)
    reply = asyncio.run(fuzz.in_process(fuzz.application())(sent))
    assert reply.status == 499


BIG = 8 << 20
DEEP = [
    pytest.param(b"[" * BIG, id="8 MiB of ["),
    pytest.param(b'{"inputs":' * (BIG // 20), id="4 MiB of objects"),
    pytest.param(b"[" * 1025 + b"]" * 1025, id="one level too deep"),
    pytest.param(b'{"inputs": ' + b"[" * 1000 + b"]" * 1000 + b"}", id="a deep field"),
    pytest.param(b'{"truncation_direction": ' + b"[" * 1000 + b"]" * 1000 + b', "inputs": "a"}'),
    pytest.param(b'{"inputs": "a", "dimensions": ' + b"9" * 5000 + b"}", id="5000 digits"),
    pytest.param(b'{"inputs": "a", "dimensions": 18446744073709551616}', id="65 bits"),
    pytest.param(b'{"inputs": [[18446744073709551615]]}', id="a token id of 64 bits"),
    pytest.param(b'{"inputs": "a", "dimensions": NaN}', id="NaN"),
]


@pytest.mark.parametrize("body", DEEP)
def test_deep_and_huge_bodies_are_refused(body: bytes) -> None:
    sent = Request("POST", "/embed", "", [("content-type", b"application/json")], body)
    reply = asyncio.run(fuzz.in_process(fuzz.application())(sent))
    assert reply.status == (400 if b"valid JSON" in reply.body else 422)
    assert len(reply.body) < 500


def test_a_length_of_thousands_of_digits_is_too_long() -> None:
    headers = [("content-type", b"application/json"), ("content-length", b"9" * 5000)]
    sent = Request("POST", "/embed", "", headers, b"{}")
    reply = asyncio.run(fuzz.in_process(fuzz.application())(sent))
    assert reply.status == 413
