"""The rules of trying again, without a socket and without waiting."""

from collections.abc import Iterable

import pytest

from embedserve_client.errors import EmbedError, HTTPError, NetworkError, Overloaded, Timeout
from embedserve_client.retry import Retry, Send, Wait, exchange
from embedserve_client.wire import Reply, Request

REQUEST = Request("POST", "/")
GOOD = Reply(200, {}, b"")


class Clock:
    """Time that passes when it is waited for."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def run(
    answers: Iterable[Reply | EmbedError], retry: Retry, end: float = 1e9, takes_s: float = 0.0
) -> tuple[Reply, list[float], int]:
    """What comes of it, the waits, and how many were sent; each try takes `takes_s`."""
    clock, waits, sent, coming = Clock(), list[float](), 0, iter(answers)
    flow = exchange(REQUEST, retry, end, clock)
    answer: Reply | EmbedError | None = None
    try:
        while True:
            match flow.send(answer):
                case Wait(seconds):
                    waits.append(seconds)
                    clock.now += seconds
                    answer = None
                case Send(request, timeout_s):
                    assert request is REQUEST
                    assert timeout_s == end - clock.now
                    sent += 1
                    clock.now += takes_s
                    answer = next(coming)
    except StopIteration as stop:
        return stop.value, waits, sent


def test_waits_grow_up_to_a_bound_and_none_is_the_same() -> None:
    retry = Retry(attempts=2000, first_wait_s=0.5, most_wait_s=10)
    _, waits, sent = run([*[NetworkError("x")] * 2000, GOOD], retry)
    assert sent == 2001
    for i, wait in enumerate(waits):
        assert 0 <= wait <= min(10, 0.5 * 2 ** min(i, 20))
    assert max(waits) > 8  # jitter up to the bound
    assert len(set(waits)) > 1900


def test_an_overloaded_service_is_given_the_time_that_it_asks_for() -> None:
    busy = Reply(429, {"retry-after": "7"}, b"")
    _, waits, _ = run([busy, Reply(429, {"retry-after": "soon"}, b""), GOOD], Retry())
    assert waits[0] >= 7
    assert waits[1] <= 0.5


def test_nothing_is_tried_past_the_end() -> None:
    with pytest.raises(NetworkError):
        run([NetworkError("x")] * 100, Retry(attempts=99), end=5, takes_s=1)
    with pytest.raises(Overloaded):
        run([Reply(429, {"retry-after": "6"}, b"")], Retry(), end=5)
    with pytest.raises(Timeout):
        run([GOOD], Retry(), end=0)


def test_a_time_that_ran_out_is_not_tried_again() -> None:
    with pytest.raises(Timeout):
        run([Timeout("x"), GOOD], Retry())


def test_without_waits_it_tries_at_once() -> None:
    _, waits, sent = run(
        [NetworkError("x"), Reply(503, {"retry-after": "9"}, b""), GOOD], Retry(waits=False)
    )
    assert (waits, sent) == ([], 3)


@pytest.mark.parametrize(
    ("body", "words"),
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
def test_the_services_own_words_are_told_whatever_its_dialect(body: bytes, words: str) -> None:
    with pytest.raises(HTTPError, match=words):
        run([Reply(400, {}, body)], Retry())
