"""Admission through the whole application: which requests are admitted, estimated and billed."""

import asyncio
from collections.abc import Mapping
from typing import Any, cast

import httpx2
import pytest

from serve_app.access.entrance import Entrance
from serve_app.access.ledger import MemoryLedger
from serve_app.config import ApiKey, IngressSettings
from serve_app.errors import Unavailable
from serve_app.jobs import EmbedJob
from serve_app.service.catalog import Catalog
from serve_app.service.embed import EmbedService
from serve_app.web.admission import Admission
from serve_app.web.app import create_app
from tests.fakes import SPEC, FakeBackend

KEY = ApiKey(name="reader", sha256="0" * 64)


class FakeReservation:
    def headers(self) -> Mapping[str, str]:
        return {"x-ratelimit-remaining-requests": "9"}


class RecordingEntrance:
    """Admits every request under one key, and records each call."""

    required = True

    def __init__(self, key: ApiKey = KEY) -> None:
        self.key = key
        self.ledger = MemoryLedger()
        self.presented: list[tuple[str | None, str | None]] = []
        self.admitted: list[tuple[str, str, int]] = []
        self.released: list[int | None] = []

    def identify(self, authorization: str | None, x_api_key: str | None) -> ApiKey | None:
        self.presented.append((authorization, x_api_key))
        return self.key

    async def admit(self, key: ApiKey, model: str, estimated_tokens: int) -> FakeReservation:
        self.admitted.append((key.name, model, estimated_tokens))
        return FakeReservation()

    async def release(self, reservation: FakeReservation, tokens: int | None) -> None:
        self.released.append(tokens)


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


def http_client(backend: FakeBackend, entrance: RecordingEntrance) -> httpx2.AsyncClient:
    service = EmbedService(SPEC, backend, IngressSettings())
    app = create_app(Catalog([service]), cast(Entrance, entrance))
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    return httpx2.AsyncClient(transport=transport, base_url="http://test")


async def post(
    backend: FakeBackend, entrance: RecordingEntrance, path: str, body: Any, **headers: str
) -> httpx2.Response:
    async with http_client(backend, entrance) as client:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await client.post(path, json=body, headers=named)


@pytest.mark.parametrize(
    ("path", "body", "estimate", "tokens"),
    [
        ("/v1/embeddings", {"input": ["a", "abcdefgh"]}, 1 + 3, 9),
        ("/v1/embeddings", {"input": ["x" * 1000]}, 16, 16),
        ("/v1/embeddings", {"input": [[97, 98, 99]]}, 3, 3),
        ("/vertex", {"instances": [{"inputs": "abcd"}, {"inputs": ["a", "b"]}]}, 2 + 1 + 1, 6),
        ("/embed_all", {"inputs": ["abcd"]}, 2, 4),
        ("/tokenize", {"inputs": "a"}, 1, 0),
        ("/decode", {"ids": [97]}, 0, 0),
    ],
    ids=str,
)
async def test_a_request_reserves_an_estimate_and_is_billed_for_its_tokens(
    backend: FakeBackend, path: str, body: Any, estimate: int, tokens: int
) -> None:
    entrance = RecordingEntrance()
    reply = await post(backend, entrance, path, body, authorization="Bearer k", x_api_key="j")
    assert reply.status_code == 200, reply.text
    assert reply.headers["x-ratelimit-remaining-requests"] == "9"
    assert entrance.presented == [("Bearer k", "j")]
    assert entrance.admitted == [("reader", "org/fake", estimate)]
    assert entrance.released == [tokens]


async def test_a_failed_request_is_billed_no_tokens(backend: FakeBackend) -> None:
    entrance = RecordingEntrance()
    backend.error = Unavailable("gone")
    await post(backend, entrance, "/embed", {"inputs": "a"})
    backend.error = cast(Unavailable, ZeroDivisionError())
    await post(backend, entrance, "/embed", {"inputs": "a"})
    assert entrance.released == [None, None]


async def test_a_cancelled_request_is_released(backend: FakeBackend) -> None:
    entrance = RecordingEntrance()
    backend.delay_s = 60
    service = EmbedService(SPEC, backend, IngressSettings())
    admission = Admission(cast(Entrance, entrance))
    task = asyncio.create_task(admission.run(KEY, service, EmbedJob(("a",))))
    while not backend.groups and not task.done():
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert entrance.released == [None]


async def test_a_malformed_body_and_a_get_request_reserve_nothing(backend: FakeBackend) -> None:
    entrance = RecordingEntrance()
    assert (await post(backend, entrance, "/embed", {"inputs": 1})).status_code == 422
    async with http_client(backend, entrance) as client:
        assert (await client.get("/v1/models")).status_code == 200
        assert (await client.get("/health")).status_code == 200
    assert (entrance.admitted, entrance.released) == ([], [])
    assert len(entrance.presented) == 2


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"input": "a"}),
        ("/vertex", {"instances": [{"inputs": "a"}, {"inputs": "b"}]}),
        ("/embed_all", {"inputs": "a"}),
    ],
)
async def test_the_lane_of_the_key_overrides_the_header(
    backend: FakeBackend, path: str, body: Any
) -> None:
    entrance = RecordingEntrance(KEY.model_copy(update={"lane": "bulk"}))
    await post(backend, entrance, path, body, x_priority="interactive")
    assert {group.lane for group in backend.groups} == {"bulk"}


async def test_the_header_sets_the_lane_of_a_key_without_one(backend: FakeBackend) -> None:
    await post(backend, RecordingEntrance(), "/embed", {"inputs": "a"}, x_priority="bulk")
    assert backend.groups[0].lane == "bulk"
