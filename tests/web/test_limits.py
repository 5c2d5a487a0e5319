"""The body reader and the concurrency limiter, without an application."""

import asyncio

import pytest
from starlette.types import Message

from serve_app.errors import BodyTimeout, BodyTooLarge, Overloaded
from serve_app.web.limits import ConcurrencyLimiter, RequestBody


class ChunkedRequest:
    """A request whose body arrives in chunks; counts the chunks that were received."""

    def __init__(
        self, chunks: list[bytes], content_length: int | None = None, hangs: bool = False
    ) -> None:
        self.received = 0
        self._chunks = chunks
        self._hangs = hangs  # the body never ends
        self.declared = str(content_length or "")
        self.body = RequestBody(self._receive)

    async def _receive(self) -> Message:
        if self.received == len(self._chunks) and self._hangs:
            await asyncio.sleep(60)
        chunk = self._chunks[self.received]
        self.received += 1
        more = self._hangs or self.received < len(self._chunks)
        return {"type": "http.request", "body": chunk, "more_body": more}


async def test_chunks_are_joined() -> None:
    body = ChunkedRequest([b"ab", b"", b"c"])
    assert await body.body.read(max_bytes=3, timeout_s=1, declared=body.declared) == b"abc"


async def test_a_content_length_over_the_limit_is_rejected_before_the_body_is_read() -> None:
    body = ChunkedRequest([b"x"], content_length=4)
    with pytest.raises(BodyTooLarge):
        await body.body.read(max_bytes=3, timeout_s=1, declared=body.declared)
    assert body.received == 0


async def test_a_body_without_content_length_is_rejected_at_the_limit() -> None:
    body = ChunkedRequest([b"xx"] * 100)
    with pytest.raises(BodyTooLarge):
        await body.body.read(max_bytes=3, timeout_s=1, declared=body.declared)
    assert body.received == 2


async def test_a_body_that_never_ends_times_out() -> None:
    body = ChunkedRequest([b"x"], hangs=True)
    with pytest.raises(BodyTimeout):
        await body.body.read(max_bytes=3, timeout_s=0.01)


async def test_the_rest_of_a_body_is_discarded() -> None:
    body = ChunkedRequest([b"ab", b"", b"c"])
    assert await body.body.discard(max_bytes=3, timeout_s=1)
    assert body.received == 3


async def test_nothing_is_discarded_after_the_body_was_read() -> None:
    body = ChunkedRequest([b"ab"])
    await body.body.read(max_bytes=3, timeout_s=1, declared=body.declared)
    assert await body.body.discard(max_bytes=3, timeout_s=1)
    assert body.received == 1


async def test_the_rest_of_a_body_that_is_too_large_is_discarded_up_to_a_limit() -> None:
    body = ChunkedRequest([b"xx"] * 100)
    with pytest.raises(BodyTooLarge):
        await body.body.read(max_bytes=3, timeout_s=1, declared=body.declared)
    assert not await body.body.discard(max_bytes=10, timeout_s=1)
    assert body.received == 2 + 6


async def test_discarding_ends_at_the_time_limit() -> None:
    body = ChunkedRequest([b"x"], hangs=True)
    assert not await body.body.discard(max_bytes=3, timeout_s=0.01)


async def test_discarding_ends_when_the_client_disconnects() -> None:
    async def receive() -> Message:
        return {"type": "http.disconnect"}

    assert not await RequestBody(receive).discard(max_bytes=3, timeout_s=1)


def test_a_full_limiter_rejects_and_a_released_slot_is_free_again() -> None:
    limiter = ConcurrencyLimiter()
    with limiter.slot(2):
        with limiter.slot(2), pytest.raises(Overloaded), limiter.slot(2):
            pass
        with limiter.slot(2):
            pass
