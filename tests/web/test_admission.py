"""What the entrance hears of a request, and what its reply tells of the key."""

import asyncio
from collections.abc import Mapping
from typing import Any, cast

import httpx2
import pytest

from serve_app.access.entrance import Access
from serve_app.config import ApiKey, IngressSettings
from serve_app.errors import Unavailable
from serve_app.service.embed import EmbedService
from serve_app.types import EmbedJob
from serve_app.web.admission import Admission
from serve_app.web.app import create_app
from tests.fakes import SPEC, FakeLookup

KEY = ApiKey(name="reader", sha256="0" * 64)


class Ticket:
    def headers(self) -> Mapping[str, str]:
        return {"x-ratelimit-remaining-requests": "9"}


class Entrance:
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

    async def enter(self, key: ApiKey, model: str, estimated_tokens: int) -> Ticket:
        self.entered.append((key.name, model, estimated_tokens))
        return Ticket()

    async def leave(self, ticket: Ticket, tokens: int | None) -> None:
        self.left.append(tokens)


@pytest.fixture
def lookup() -> FakeLookup:
    return FakeLookup()


def client_of(
    lookup: FakeLookup, entrance: Entrance, settings: IngressSettings | None = None
) -> httpx2.AsyncClient:
    service = EmbedService(SPEC, lookup, settings or IngressSettings())
    app = create_app(service, cast(Access, entrance))
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    return httpx2.AsyncClient(transport=transport, base_url="http://test")


async def ask(
    lookup: FakeLookup, entrance: Entrance, path: str, body: Any, **headers: str
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
    lookup: FakeLookup, path: str, body: Any, estimate: int, tokens: int
) -> None:
    entrance = Entrance()
    reply = await ask(lookup, entrance, path, body, authorization="Bearer k", x_api_key="j")
    assert reply.status_code == 200, reply.text
    assert reply.headers["x-ratelimit-remaining-requests"] == "9"
    assert entrance.presented == [("Bearer k", "j")]
    assert entrance.entered == [("reader", "org/fake", estimate)]
    assert entrance.left == [tokens]


async def test_a_request_that_fails_leaves_without_tokens(lookup: FakeLookup) -> None:
    entrance = Entrance()
    lookup.error = Unavailable("gone")
    await ask(lookup, entrance, "/embed", {"inputs": "a"})
    lookup.error = cast(Unavailable, ZeroDivisionError())
    await ask(lookup, entrance, "/embed", {"inputs": "a"})
    assert entrance.left == [None, None]


async def test_a_request_whose_client_goes_away_leaves_too(lookup: FakeLookup) -> None:
    entrance = Entrance()
    lookup.delay_s = 60
    service = EmbedService(SPEC, lookup, IngressSettings())
    admission = Admission(service, cast(Access, entrance))
    task = asyncio.create_task(admission.run(KEY, EmbedJob(("a",))))
    while not lookup.groups:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert entrance.left == [None]


async def test_what_is_no_request_of_the_model_does_not_enter(lookup: FakeLookup) -> None:
    entrance = Entrance()
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
async def test_a_keys_lane_is_what_counts(lookup: FakeLookup, path: str, body: Any) -> None:
    entrance = Entrance(KEY.model_copy(update={"lane": "bulk"}))
    await ask(lookup, entrance, path, body, x_priority="interactive")
    assert {group.lane for group in lookup.groups} == {"bulk"}


async def test_a_key_without_a_lane_leaves_it_to_the_client(lookup: FakeLookup) -> None:
    await ask(lookup, Entrance(), "/embed", {"inputs": "a"}, x_priority="bulk")
    assert lookup.groups[0].lane == "bulk"
