import asyncio

import pytest
from starlette.requests import Request
from starlette.types import Message

from serve_app.errors import BodyTimeout, BodyTooLarge, Overloaded
from serve_app.web.limits import Gate, read_body


class Body:
    """A request whose body arrives in chunks, and that counts how many were taken."""

    def __init__(self, chunks: list[bytes], declared: int | None = None, hang: bool = False):
        self.taken = 0
        self._chunks = chunks
        self._hang = hang
        headers = [] if declared is None else [(b"content-length", str(declared).encode())]
        self.request = Request({"type": "http", "headers": headers}, self._receive)

    async def _receive(self) -> Message:
        if self.taken == len(self._chunks) and self._hang:
            await asyncio.sleep(60)
        chunk = self._chunks[self.taken]
        self.taken += 1
        more = self._hang or self.taken < len(self._chunks)
        return {"type": "http.request", "body": chunk, "more_body": more}


async def test_chunks_are_put_together() -> None:
    body = Body([b"ab", b"", b"c"])
    assert await read_body(body.request, max_bytes=3, timeout_s=1) == b"abc"


async def test_a_declared_size_is_refused_before_anything_is_read() -> None:
    body = Body([b"x"], declared=4)
    with pytest.raises(BodyTooLarge):
        await read_body(body.request, max_bytes=3, timeout_s=1)
    assert body.taken == 0


async def test_an_undeclared_size_is_refused_as_soon_as_it_is_over() -> None:
    body = Body([b"xx"] * 100)
    with pytest.raises(BodyTooLarge):
        await read_body(body.request, max_bytes=3, timeout_s=1)
    assert body.taken == 2


async def test_a_body_that_never_ends_is_given_up() -> None:
    body = Body([b"x"], hang=True)
    with pytest.raises(BodyTimeout):
        await read_body(body.request, max_bytes=3, timeout_s=0.01)


def test_the_gate_refuses_one_too_many_and_lets_in_again() -> None:
    gate = Gate()
    with gate.entered(2):
        with gate.entered(2), pytest.raises(Overloaded), gate.entered(2):
            pass
        with gate.entered(2):
            pass
