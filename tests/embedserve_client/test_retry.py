"""The retry flow, without sockets and without delays."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from embedserve_client.errors import (
    EmbedError,
    HTTPError,
    NetworkError,
    RateLimitError,
    RequestTimeoutError,
)
from embedserve_client.retry import RetryPolicy, Send, Sleep, send_with_retries
from embedserve_client.wire import Request, Response

REQUEST = Request("POST", "/")
OK = Response(200, {}, b"")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def run(
    outcomes: Iterable[Response | EmbedError],
    policy: RetryPolicy,
    deadline: float = 1e9,
    attempt_s: float = 0.0,
) -> tuple[Response, list[float], int]:
    """Returns the response, the delays, and the number of attempts of `attempt_s` each."""
    clock, delays, sent, remaining = Clock(), list[float](), 0, iter(outcomes)
    flow = send_with_retries(REQUEST, policy, deadline, clock)
    outcome: Response | EmbedError | None = None
    try:
        while True:
            match flow.send(outcome):
                case Sleep(seconds):
                    delays.append(seconds)
                    clock.now += seconds
                    outcome = None
                case Send(request, timeout_s):
                    assert request is REQUEST
                    assert timeout_s == deadline - clock.now
                    sent += 1
                    clock.now += attempt_s
                    outcome = next(remaining)
    except StopIteration as stop:
        return stop.value, delays, sent


def test_delays_double_up_to_a_bound_with_jitter() -> None:
    policy = RetryPolicy(max_retries=2000, retry_delay_s=0.5, max_retry_delay_s=10)
    _, delays, sent = run([*[NetworkError("x")] * 2000, OK], policy)
    assert sent == 2001
    for i, delay in enumerate(delays):
        assert 0 <= delay <= min(10, 0.5 * 2 ** min(i, 20))
    assert max(delays) > 8  # the jitter reaches the bound
    assert len(set(delays)) > 1900


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_a_lower_bound(status: int) -> None:
    busy = Response(status, {"retry-after": "7"}, b"")
    malformed = Response(429, {"retry-after": "soon"}, b"")
    _, delays, _ = run([busy, malformed, OK], RetryPolicy())
    assert delays[0] >= 7
    assert delays[1] <= 0.5


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_may_be_a_date(status: int) -> None:
    header = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    past = format_datetime(datetime.now(UTC) - timedelta(days=1), usegmt=True)
    responses = [Response(status, {"retry-after": value}, b"") for value in (header, past)]
    _, delays, _ = run([*responses, OK], RetryPolicy())
    assert 50 <= delays[0] <= 61
    assert delays[1] <= 0.5


def test_retry_after_of_other_errors_is_ignored() -> None:
    _, delays, _ = run([Response(500, {"retry-after": "7"}, b""), OK], RetryPolicy())
    assert delays[0] < 7


def test_no_retry_after_the_deadline() -> None:
    with pytest.raises(NetworkError):
        run([NetworkError("x")] * 100, RetryPolicy(max_retries=99), deadline=5, attempt_s=1)
    with pytest.raises(RateLimitError):
        run([Response(429, {"retry-after": "6"}, b"")], RetryPolicy(), deadline=5)
    with pytest.raises(RequestTimeoutError):
        run([OK], RetryPolicy(), deadline=0)


def test_timeouts_are_not_retried() -> None:
    with pytest.raises(RequestTimeoutError):
        run([RequestTimeoutError("x"), OK], RetryPolicy())


def test_zero_delay_retries_at_once() -> None:
    policy = RetryPolicy(max_retry_delay_s=0)
    _, delays, sent = run([NetworkError("x"), Response(503, {}, b""), OK], policy)
    assert (delays, sent) == ([], 3)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": {"message": "m", "code": "c"}}', "m"),
        (b'{"error": "m"}', "m"),
        (b'{"detail": "m"}', "m"),
        (b"plain", "plain"),
        (b"", "no reason"),
        (b"\xff\xfe", "status 400"),
        (b"[1]", "1"),
    ],
)
def test_message_is_found_in_all_error_formats(body: bytes, message: str) -> None:
    with pytest.raises(HTTPError, match=message):
        run([Response(400, {}, body)], RetryPolicy())
