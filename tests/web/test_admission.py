"""What the entrance hears of a request, and what its reply tells of the key."""

import asyncio
from collections.abc import Mapping
from typing import Any, cast

import httpx2
import pytest

from serve_app.access.entrance import Entrance
from serve_app.config import ApiKey, IngressSettings
from serve_app.errors import Unavailable
from serve_app.service.embed import EmbedService
from serve_app.types import EmbedJob
from serve_app.web.admission import Admission
from serve_app.web.app import create_app
from tests.fakes import SPEC, FakeBackend

KEY = ApiKey(name="reader", sha256="0" * 64)


class FakeReservation:
    def headers(self) -> Mapping[str, str]:
        return {"x-ratelimit-remaining-requests": "9"}


class FakeEntrance:
    """Lets one key in, and writes down who came and who left."""

    required = True

    def __init__(self, key: ApiKey = KEY) -> None:
        self.key = key
        self.presented: list[tuple[str | None, str | None]] = []
        self.entered: list[tuple[str, str, int]] = []
        self.left: list[int | None] = []

    def identify(self, authorization: str | None, x_api_key: str | None) -> ApiKey | None:
        self.presented.append((authorization, x_api_key))
        return self.key

    async def admit(self, key: ApiKey, model: str, estimated_tokens: int) -> FakeReservation:
        self.entered.append((key.name, model, estimated_tokens))
        return FakeReservation()

    async def release(self, reservation: FakeReservation, tokens: int | None) -> None:
        self.left.append(tokens)


@pytest.fixture
def lookup() -> FakeBackend:
    return FakeBackend()


def client_of(
    lookup: FakeBackend, entrance: FakeEntrance, settings: IngressSettings | None = None
) -> httpx2.AsyncClient:
    service = EmbedService(SPEC, lookup, settings or IngressSettings())
    app = create_app(service, cast(Entrance, entrance))
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    return httpx2.AsyncClient(transport=transport, base_url="http://test")


async def ask(
    lookup: FakeBackend, entrance: FakeEntrance, path: str, body: Any, **headers: str
) -> httpx2.Response:
    async with client_of(lookup, entrance) as client:
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
async def test_a_key_enters_with_an_estimate_and_leaves_with_what_was_used(
    lookup: FakeBackend, path: str, body: Any, estimate: int, tokens: int
) -> None:
    entrance = FakeEntrance()
    reply = await ask(lookup, entrance, path, body, authorization="Bearer k", x_api_key="j")
    assert reply.status_code == 200, reply.text
    assert reply.headers["x-ratelimit-remaining-requests"] == "9"
    assert entrance.presented == [("Bearer k", "j")]
    assert entrance.entered == [("reader", "org/fake", estimate)]
    assert entrance.left == [tokens]


async def test_a_request_that_fails_leaves_without_tokens(lookup: FakeBackend) -> None:
    entrance = FakeEntrance()
    lookup.error = Unavailable("gone")
    await ask(lookup, entrance, "/embed", {"inputs": "a"})
    lookup.error = cast(Unavailable, ZeroDivisionError())
    await ask(lookup, entrance, "/embed", {"inputs": "a"})
    assert entrance.left == [None, None]


async def test_a_request_whose_client_goes_away_leaves_too(lookup: FakeBackend) -> None:
    entrance = FakeEntrance()
    lookup.delay_s = 60
    service = EmbedService(SPEC, lookup, IngressSettings())
    admission = Admission(service, cast(Entrance, entrance))
    task = asyncio.create_task(admission.run(KEY, EmbedJob(("a",))))
    while not lookup.groups:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert entrance.left == [None]


async def test_what_is_no_request_of_the_model_does_not_enter(lookup: FakeBackend) -> None:
    entrance = FakeEntrance()
    assert (await ask(lookup, entrance, "/embed", {"inputs": 1})).status_code == 422
    async with client_of(lookup, entrance) as client:
        assert (await client.get("/v1/models")).status_code == 200
        assert (await client.get("/health")).status_code == 200
    assert (entrance.entered, entrance.left) == ([], [])
    assert len(entrance.presented) == 2


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"input": "a"}),
        ("/vertex", {"instances": [{"inputs": "a"}, {"inputs": "b"}]}),
        ("/embed_all", {"inputs": "a"}),
    ],
)
async def test_a_keys_lane_is_what_counts(lookup: FakeBackend, path: str, body: Any) -> None:
    entrance = FakeEntrance(KEY.model_copy(update={"lane": "bulk"}))
    await ask(lookup, entrance, path, body, x_priority="interactive")
    assert {group.lane for group in lookup.groups} == {"bulk"}


async def test_a_key_without_a_lane_leaves_it_to_the_client(lookup: FakeBackend) -> None:
    await ask(lookup, FakeEntrance(), "/embed", {"inputs": "a"}, x_priority="bulk")
    assert lookup.groups[0].lane == "bulk"
