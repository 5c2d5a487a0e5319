"""What clients of each dialect send, and what they get, as in `golden/*.json`.

The pairs are written from the contracts of the dialects; `<...>` stands for what differs each time.
Fields of a pair:

* `ask`, and `body` (JSON) or `raw`, `headers`: the request. `<9 x>` in its body is nine x.
* `given`: `settings` and `spec` that differ from those of `fakes`; `tiers` that the vectors come
  from; `cache`; `before`: requests that came before; `endless`: a body that never ends;
  `delay_s`; `error`: class and arguments, raised where that error comes from.
* `status`, `reply`, `told` (headers; null: not there), `error`: the class of ours that it was.
"""

import asyncio
import builtins
import inspect
import json
import re
import zlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import httpx2
import numpy as np
import pytest

from serve_app import errors
from serve_app.access.entrance import Entrance
from serve_app.config import ApiKey, IngressSettings
from serve_app.errors import EmbedServeError, Forbidden, QuotaExceeded, Unauthorized
from serve_app.metrics import Meter
from serve_app.service.embed import EmbedService
from serve_app.service.replica_stats import SingleReplica
from serve_app.types import CacheState, Float32, Tier
from serve_app.web.app import create_app
from serve_app.web.dialect import (
    Dialect,
    DialectEndpoint,
    DialectView,
    ErrorResponse,
    all_views,
    endpoints_by_path,
)
from serve_app.web.dialects import load_dialects
from tests.fakes import DIM, SPEC, FakeBackend

Pair = dict[str, Any]

GOLDEN = Path(__file__).with_name("golden")
PAIRS: dict[str, list[Pair]] = {
    file.stem: json.loads(file.read_text(encoding="utf-8"))
    for file in sorted(GOLDEN.glob("*.json"))
}
ALL = [
    pytest.param(pair, id=f"{dialect}: {pair['name']}")
    for dialect, pairs in PAIRS.items()
    for pair in pairs
]
ANYTHING = {
    "<uuid>": r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    "<unix time>": r"1[789]\d{8}(\.\d+)?",
    "<seconds>": r"\d+(\.\d+)?(e-\d+)?",
    "<whole>": r"\d+",
    "<word>": r"[\w+]+",
    "<version>": r"\d+(\.\w+)+",
}


def exact_vector(text: str) -> Float32:
    """A vector that is easy to read and the same on every machine.

    Of each pair of components one is 0.5 or -0.5, so that lengths and means have no rounding.
    """
    bits = zlib.crc32(text.encode())
    vector = np.zeros(DIM, dtype=np.float32)
    for k in range(DIM // 2):
        vector[2 * k + (bits >> k & 1)] = 0.5 if bits >> (4 + k) & 1 else -0.5
    return vector


class FakeEntrance:
    """In the place of `Entrance`: lets everybody in, or fails as a pair asks for."""

    required = True

    def __init__(self, error: Exception | None) -> None:
        self._error = error

    def identify(self, authorization: str | None, x_api_key: str | None) -> ApiKey | None:
        if isinstance(self._error, Unauthorized):
            raise self._error
        return ApiKey(name="x", sha256="0" * 64)

    async def admit(self, key: ApiKey, model: str, estimated_tokens: int) -> "FakeEntrance":
        if isinstance(self._error, Forbidden | QuotaExceeded):
            raise self._error
        return self

    async def release(self, reservation: "FakeEntrance", tokens: int | None) -> None: ...

    def headers(self) -> dict[str, str]:
        return {}


class Told(SingleReplica):
    """A fleet of one, which tells metrics."""

    def __init__(self, meter: Meter, text: str) -> None:
        super().__init__(meter)
        self._text = text

    async def prometheus_text(self) -> str:
        return self._text


def error_of(given: list[Any] | None) -> Exception | None:
    if given is None:
        return None
    name, *args = given
    cls = getattr(errors, name, None) or getattr(builtins, name)
    error = cls(*args)
    assert isinstance(error, Exception)
    return error


def recording(dialect: Dialect, errors: list[str]) -> Dialect:
    """Returns the dialect with a renderer that appends the class of each error to `errors`."""

    def render_error(error: EmbedServeError) -> ErrorResponse:
        errors.append(type(error).__name__)
        return dialect.render_error(error)

    return replace(dialect, render_error=render_error)


def client_of(given: Pair, rendered: list[str]) -> httpx2.AsyncClient:
    """Returns a client of a service in the state that a pair describes.

    Args:
        given: the pair's `given`.
        rendered: receives the class of each error that is rendered.
    """
    error = error_of(given.get("error"))
    lookup = FakeBackend()
    if not isinstance(error, Unauthorized | Forbidden | QuotaExceeded):
        lookup.error = cast("EmbedServeError | None", error)
    lookup.delay_s = given.get("delay_s", 0.0)
    lookup.tiers = [Tier[name] for name in given.get("tiers", ())]
    lookup.cache = CacheState(*given.get("cache", ("up", None, "embedded")))
    if "cache_error" in given:
        lookup.cache = cast(EmbedServeError, error_of(given["cache_error"]))
    spec = dict(given.get("spec", {}))
    if "quantization_ranges" in spec:
        spec["quantization_ranges"] = np.array(spec["quantization_ranges"], dtype=np.float32)
    meter = Meter()
    service = EmbedService(
        replace(SPEC, **spec),
        lookup,
        IngressSettings.model_validate(given.get("settings", {})),
        meter,
        Told(meter, given.get("exposition", "")),
    )
    dialects = [recording(dialect, rendered) for dialect in load_dialects()]
    app = create_app(service, cast(Entrance, FakeEntrance(error)), dialects=dialects)
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    return httpx2.AsyncClient(transport=transport, base_url="http://test")


async def send(
    client: httpx2.AsyncClient, ask: str, content: Any, headers: dict[str, str] | None = None
) -> httpx2.Response:
    method, path = ask.split(" ")
    about = {} if content is None else {"content-type": "application/json"}
    return await client.request(method, path, content=content, headers=about | (headers or {}))


def content_of(pair: Pair) -> Any:
    if pair.get("given", {}).get("endless"):
        return endless()
    if "body" not in pair:
        return pair.get("raw")
    body = json.dumps(pair["body"])
    return re.sub(r"<(\d+) x>", lambda found: "x" * int(found[1]), body)


async def endless() -> AsyncIterator[bytes]:
    yield b"{"
    await asyncio.sleep(60)


def differs(wanted: Any, got: Any) -> str | None:
    """Where a reply differs from what was wanted; None: nowhere."""
    if isinstance(wanted, dict) and isinstance(got, dict):
        if wanted.keys() != got.keys():
            return f": keys {sorted(got)}, wanted {sorted(wanted)}"
        places: Any = wanted
    elif isinstance(wanted, list) and isinstance(got, list):
        if len(wanted) != len(got):
            return f": {len(got)} items, wanted {len(wanted)}"
        places = range(len(wanted))
    elif isinstance(wanted, str) and "<" in wanted:
        parts = re.split("(<[^>]*>)", wanted)
        pattern = "".join(ANYTHING.get(part) or re.escape(part) for part in parts)
        return None if re.fullmatch(pattern, str(got)) else f": {got!r}, wanted {wanted!r}"
    else:
        same = wanted == got and isinstance(wanted, bool) == isinstance(got, bool)
        return None if same else f": {got!r}, wanted {wanted!r}"
    found = ((place, differs(wanted[place], got[place])) for place in places)
    return next((f".{place}{where}" for place, where in found if where), None)


@pytest.mark.parametrize("pair", ALL)
async def test_pair(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fakes.fake_vector", exact_vector)
    given = pair.get("given", {})
    rendered: list[str] = []
    async with client_of(given, rendered) as client:
        for ask, body in given.get("before", ()):
            await send(client, ask, None if body is None else json.dumps(body))
        rendered.clear()
        reply = await send(client, pair["ask"], content_of(pair), pair.get("headers"))
    assert reply.status_code == pair["status"], reply.text
    told = {"content-type": "application/json"} | pair.get("told", {})
    for name, value in told.items():
        got = reply.headers.get(name)
        assert (got is None) if value is None else not differs(value, got), (name, got)
    assert reply.headers["x-embedding-space"] == SPEC.space_id
    wanted = pair["reply"]
    if isinstance(wanted, str):
        assert reply.text == wanted
    else:
        assert differs(wanted, reply.json()) is None
    assert rendered == ([pair["error"]] if "error" in pair else [])


BY_PATH = endpoints_by_path(load_dialects())
VIEWS = all_views(load_dialects())
#: No request of TEI's has a path that isn't TEI's.
IMPOSSIBLE = {("tei", "RouteNotFound")}


def asked(dialect: str) -> list[tuple[str, str, bool]]:
    """Of each pair of a dialect the method, the path, and whether all went well."""
    return [
        (*pair["ask"].split(" "), pair["status"] == 200 and "error" not in pair)
        for pair in PAIRS[dialect]
    ]


@pytest.mark.parametrize(
    "route",
    [route for candidates in BY_PATH.values() for route in candidates],
    ids=lambda route: f"{route.dialect.name} {route.endpoint.path}",
)
def test_every_endpoint_has_pairs_of_both_kinds(route: DialectEndpoint) -> None:
    endpoint = route.endpoint
    dialect = route.dialect.name.lower().replace(" ", "_")
    kinds = {ok for method, path, ok in asked(dialect) if (method, path) == ("POST", endpoint.path)}
    assert kinds == ({True, False} if endpoint.reply_schema else {False})


@pytest.mark.parametrize("route", VIEWS, ids=lambda route: f"{route.view.method} {route.view.path}")
def test_every_view_has_pairs_of_both_kinds(route: DialectView) -> None:
    view = route.view
    pattern = re.sub(r"{.*}", ".+", view.path)
    kinds = {
        ok
        for dialect in PAIRS
        for method, path, ok in asked(dialect)
        if method == view.method and re.fullmatch(pattern, path)
    }
    can_fail = not view.public or view.statuses
    assert kinds == ({True, False} if can_fail else {True})


def reaching_clients() -> list[str]:
    return [
        name
        for name, cls in inspect.getmembers(errors, inspect.isclass)
        if issubclass(cls, EmbedServeError)
        and not issubclass(cls, errors.ConfigurationError)
        and cls not in (errors.ClientError, errors.ServerError)
    ]


@pytest.mark.parametrize("dialect", ["openai", "tei"])
@pytest.mark.parametrize("name", reaching_clients())
def test_every_error_has_a_pair(name: str, dialect: str) -> None:
    told = {pair.get("error") for pair in PAIRS[dialect]}
    assert (name in told) != ((dialect, name) in IMPOSSIBLE)
