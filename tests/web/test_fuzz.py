"""A short run of the fuzzer, and tests that it finds each kind of problem."""

import asyncio
import json
import mmap

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from tests import fuzz
from tests.malformed_requests import Request, malformed_request


def run(app: ASGIApp, bodies: int, timeout_s: float = 10.0) -> fuzz.Report:
    return asyncio.run(fuzz.run(fuzz.in_process(app), range(bodies), seed=1, timeout_s=timeout_s))


def test_every_request_gets_a_reply_in_the_format_of_its_dialect() -> None:
    report = run(fuzz.application(), 1500)
    assert report.problems == {}
    assert report.passed
    assert report.statuses.total() == 1500
    statuses = {status for _, status in report.statuses}
    assert {200, 400, 404, 405, 415, 422, 424, 499} <= statuses
    assert 307 not in statuses


def test_a_request_depends_on_seed_and_number_alone() -> None:
    requests = [malformed_request(1, number) for number in range(300)]
    assert requests == [malformed_request(1, number) for number in range(300)]
    assert requests != [malformed_request(2, number) for number in range(300)]


def replying(status: int, body: bytes, *headers: tuple[bytes, bytes]) -> ASGIApp:
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
    ("app", "message"),
    [
        (replying(500, b'{"error": "x", "error_type": "y"}'), "500"),
        (replying(400, b"<html>"), "isn't JSON"),
        (replying(400, b'{"nothing": 1}'), "another dialect"),
        (replying(400, b""), "isn't JSON"),
        (replying(400, json.dumps({"error": "x" * 10**6}).encode()), "of 10000"),
        (replying(200, b'{"a": '), "isn't JSON"),
        (hanging, "no reply"),
        (broken, "ZeroDivisionError"),
    ],
)
def test_the_fuzzer_reports_a_problem(app: ASGIApp, message: str) -> None:
    report = run(app, 20, timeout_s=0.001)
    assert not report.passed
    assert any(message in problem for problem in report.problems.values())


def test_the_fuzzer_fails_on_a_memory_leak() -> None:
    leaked: list[mmap.mmap] = []

    async def leaking(scope: Scope, receive: Receive, send: Send) -> None:
        pages = mmap.mmap(-1, 1 << 20)  # new pages; the heap could reuse freed memory
        pages.write(b"x" * (1 << 20))
        leaked.append(pages)
        await replying(204, b"")(scope, receive, send)

    report = run(leaking, 100)
    assert report.problems == {}
    assert not report.passed


def test_a_passing_run_exits_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz.main(["--bodies", "20", "--seed", "7"]) == 0
    assert "--only" not in capsys.readouterr().out


def test_a_failing_run_exits_with_1_and_prints_how_to_repeat_a_request(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert fuzz.main(["--bodies", "20", "--seed", "7"], broken) == 1
    assert "--seed 7 --only 0: ZeroDivisionError" in capsys.readouterr().out


JSON = [("content-type", b"application/json")]


def test_a_client_that_disconnects_gets_499() -> None:
    request = Request("POST", "/embed", "", JSON, b"{", disconnects=True)
    reply = asyncio.run(fuzz.in_process(fuzz.application())(request))
    assert reply.status == 499


BIG = 8 << 20
EXTREME = [
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


@pytest.mark.parametrize("body", EXTREME)
def test_deep_and_huge_bodies_are_rejected(body: bytes) -> None:
    request = Request("POST", "/embed", "", JSON, body)
    reply = asyncio.run(fuzz.in_process(fuzz.application())(request))
    assert reply.status == (400 if b"valid JSON" in reply.body else 422)
    assert len(reply.body) < 500


def test_a_content_length_of_thousands_of_digits_is_too_large() -> None:
    headers = [*JSON, ("content-length", b"9" * 5000)]
    request = Request("POST", "/embed", "", headers, b"{}")
    reply = asyncio.run(fuzz.in_process(fuzz.application())(request))
    assert reply.status == 413
