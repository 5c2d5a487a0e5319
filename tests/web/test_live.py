"""`GET /live` over the application: status, format, limit, keys, and clients that leave."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from starlette.types import ASGIApp, Message

from serve_app.access.entrance import Entrance
from serve_app.access.quota import MemoryQuotaStore
from serve_app.config import AccessSettings, IngressSettings
from serve_app.live.live_feed import MAX_LISTENERS
from serve_app.live.replica_sampler import ReplicaSampler
from serve_app.meter import Meter
from serve_app.service.catalog import Catalog
from serve_app.service.embed import EmbedService
from serve_app.service.replica_stats import SingleReplica, this_process
from serve_app.web.app import create_app
from tests.fakes import SPEC, FakeBackend
from tests.web.test_keys import KEYS, SECRETS

LIMIT_S = 30


class Listener:
    """A client of `GET /live`, by ASGI messages."""

    def __init__(self, app: ASGIApp, query: str, headers: dict[str, str], method: str) -> None:
        self._sent = asyncio.Queue[Message]()
        self._leaves = asyncio.Event()
        self._asked = False
        scope = {
            **{"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1"},
            **{"method": method, "scheme": "http", "path": "/live", "raw_path": b"/live"},
            **{"root_path": "", "query_string": query.encode(), "client": ("127.0.0.1", 1)},
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "server": ("127.0.0.1", 80),
        }
        self.task = asyncio.ensure_future(app(scope, self._receive, self._sent.put))
        self.status = 0
        self.headers: dict[str, str] = {}

    async def _receive(self) -> Message:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._leaves.wait()
        return {"type": "http.disconnect"}

    async def start(self) -> None:
        message = await self._sent.get()
        self.status = message["status"]
        self.headers = {name.decode(): value.decode() for name, value in message["headers"]}

    async def body(self) -> bytes:
        """Returns the next part of the body."""
        part: bytes = (await self._sent.get()).get("body", b"")
        return part

    async def event(self) -> dict[str, Any]:
        part = await self.body()
        assert part.startswith(b"data: ")
        assert part.endswith(b"\n\n")
        assert part.count(b"\n") == 2
        event: dict[str, Any] = json.loads(part[6:])
        return event

    async def leave(self) -> None:
        self._leaves.set()
        await asyncio.wait({self.task})


Listen = Callable[..., Awaitable[Listener]]


@pytest.fixture
def access() -> Entrance:
    return Entrance(MemoryQuotaStore())


@pytest.fixture
def catalog(access: Entrance) -> Catalog:
    meter = Meter()
    sampler = ReplicaSampler(this_process(), meter, in_flight=lambda: 0, keys=access.key_levels)
    service = EmbedService(SPEC, FakeBackend(), IngressSettings(), meter.for_model(SPEC.name))
    return Catalog([service], SingleReplica(meter, sampler=sampler))


@pytest.fixture
async def listen(catalog: Catalog, access: Entrance) -> AsyncIterator[Listen]:
    app = create_app(catalog, access)
    listeners = list[Listener]()

    async def listen(query: str = "", method: str = "GET", **headers: str) -> Listener:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        listener = Listener(app, query, names, method)
        listeners.append(listener)
        await listener.start()
        return listener

    async with asyncio.timeout(LIMIT_S):
        yield listen
        for listener in listeners:
            await listener.leave()


async def test_snapshots_are_server_sent_events(listen: Listen) -> None:
    listener = await listen("interval_s=0.5", accept_encoding="gzip")
    assert listener.status == 200
    assert listener.headers["content-type"].startswith("text/event-stream")
    assert listener.headers["cache-control"] == "no-store"
    assert "content-encoding" not in listener.headers
    first, second = await listener.event(), await listener.event()
    assert first["requests"]["per_s"] is None
    assert second["requests"]["per_s"] == 0
    assert second["unix"] > first["unix"]
    assert second["models"][0]["name"] == SPEC.name


async def test_once_returns_one_json_object_with_rates(listen: Listen) -> None:
    reply = await listen("once=true&interval_s=0.5")
    assert reply.headers["content-type"] == "application/json"
    assert json.loads(await reply.body())["requests"]["per_s"] == 0
    assert reply.headers["content-length"]


@pytest.mark.parametrize("query", ["interval_s=0.4", "interval_s=11", "interval_s=nan", "once=2"])
async def test_wrong_parameters_are_errors(listen: Listen, query: str, catalog: Catalog) -> None:
    reply = await listen(query)
    assert reply.status == 400
    assert query.split("=")[0] in json.loads(await reply.body())["error"]["message"]
    assert catalog.live.listeners == 0


async def test_a_client_that_leaves_is_forgotten_at_once(listen: Listen, catalog: Catalog) -> None:
    listener = await listen("interval_s=10")
    await listener.event()
    assert catalog.live.listeners == 1
    await listener.leave()
    assert catalog.live.listeners == 0


async def test_head_listens_to_nothing(listen: Listen, catalog: Catalog) -> None:
    reply = await listen(method="HEAD")
    assert reply.status == 200
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert await reply.body() == b""
    assert catalog.live.listeners == 0


async def test_too_many_listeners_get_a_429(listen: Listen) -> None:
    listeners = [await listen() for _ in range(MAX_LISTENERS)]
    rejected = await listen()
    assert rejected.status == 429
    assert int(rejected.headers["retry-after"]) > 0
    await listeners[0].leave()
    assert (await listen()).status == 200


async def test_a_stop_ends_the_stream(listen: Listen, catalog: Catalog) -> None:
    listener = await listen("interval_s=10")
    await listener.event()
    catalog.live.close()
    await listener.task
    assert await listener.body() == b""
    rejected = await listen()
    assert rejected.status == 503
    assert rejected.headers["retry-after"] == "1"


async def test_a_key_is_needed_where_there_are_keys(listen: Listen, access: Entrance) -> None:
    access.apply(AccessSettings(keys=KEYS))
    assert (await listen()).status == 401
    listener = await listen(authorization=f"Bearer {SECRETS['all']}")
    assert listener.status == 200
    text = json.dumps(await listener.event())
    assert {key.name for key in KEYS} == {key["name"] for key in json.loads(text)["keys"]}
    assert not any(secret in text for secret in SECRETS.values())
    assert not any(key.sha256 in text for key in KEYS)
