"""Golden requests and replies of each dialect, from `golden/*.json`.

The pairs follow the dialects' own documentation. `<…>` in a reply is a placeholder for a value that
varies. Fields of a pair:

* `ask`, and `body` (JSON) or `raw`, `headers`: the request. `<9 x>` in its body is `x` nine times.
* `given`: state of the service. `settings` and `spec` override those of `fakes`; `tiers` are the
  tiers of the vectors; `cache` is the cache's state; `costs` are rows of the ledger; `scaling` are
  decisions of autoscaling; `before` lists
  earlier requests; `endless` sends a body that never ends; `delay_s` delays the backend; `error`
  has the class and arguments of an error to raise.
* `status`, `reply`, `told` (headers; null means absent), `error` (class of the rendered error): the
  expected response.
"""

import asyncio
import builtins
import inspect
import json
import re
import zlib
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any, cast

import httpx2
import numpy as np
import pytest

from serve_app import errors
from serve_app.access.entrance import Entrance
from serve_app.access.ledger import LedgerRow, Usage
from serve_app.autoscale.scaling_record import ScalingRecord
from serve_app.config import ApiKey, IngressSettings
from serve_app.errors import EmbedServeError, Forbidden, QuotaExceeded, Unauthorized
from serve_app.meter import Meter
from serve_app.metrics import COST_NANO_USD, SAVED_NANO_USD
from serve_app.results import Result
from serve_app.service.catalog import Catalog
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
PLACEHOLDERS = {
    "<uuid>": r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    "<unix time>": r"1[789]\d{8}(\.\d+)?",
    "<seconds>": r"\d+(\.\d+)?(e-\d+)?",
    "<whole>": r"\d+",
    "<word>": r"[\w+]+",
    "<host>": r"[\w.-]+",
    "<version>": r"\d+(\.\w+)+",
}


def exact_vector(text: str) -> Float32:
    """Returns a readable vector of shape (DIM,), the same on every machine.

    One component of each pair is 0.5 or -0.5 and the other 0: lengths and means are exact.
    """
    bits = zlib.crc32(text.encode())
    vector = np.zeros(DIM, dtype=np.float32)
    for k in range(DIM // 2):
        vector[2 * k + (bits >> k & 1)] = 0.5 if bits >> (4 + k) & 1 else -0.5
    return vector


class FakeEntrance:
    """Replaces `Entrance`: admits every request, or raises the error of a pair."""

    required = True

    def __init__(self, error: Exception | None, meter: Meter, ledger: "FixedLedger") -> None:
        self._error = error
        self._meter = meter
        self.ledger = ledger

    def identify(self, authorization: str | None, x_api_key: str | None) -> ApiKey | None:
        if isinstance(self._error, Unauthorized):
            raise self._error
        return ApiKey(name="x", sha256="0" * 64)

    def check_budget(self, key: ApiKey, model: str) -> None: ...

    async def admit(self, key: ApiKey, model: str, estimated_tokens: int) -> "FakeEntrance":
        if isinstance(self._error, Forbidden | QuotaExceeded):
            raise self._error
        return self

    async def release(self, reservation: "FakeEntrance", tokens: int | None) -> None: ...

    def charge(self, key: ApiKey | None, result: Result) -> None:
        if result.cost is not None:
            self._meter.add(COST_NANO_USD, result.cost.nano_usd)
            self._meter.add(SAVED_NANO_USD, result.cost.saved_nano_usd)

    def headers(self) -> dict[str, str]:
        return {}


class FixedLedger:
    """A ledger with fixed rows, or with an error."""

    def __init__(self, rows: list[Any], error: Exception | None) -> None:
        self._rows = rows
        self._error = error

    async def rows(self, since: date | None = None) -> list[LedgerRow]:
        if self._error is not None:
            raise self._error
        return [
            LedgerRow(date.fromisoformat(day), model, key, Usage(*usage))
            for day, model, key, *usage in self._rows
        ]


class FixedMetrics(SingleReplica):
    """Statistics of one replica with a fixed Prometheus text and fixed decisions."""

    def __init__(self, meter: Meter, text: str, scaling: list[ScalingRecord]) -> None:
        super().__init__(meter)
        self._text = text
        self._scaling = scaling

    async def prometheus_text(self) -> str:
        return self._text

    async def scaling(self) -> list[ScalingRecord]:
        return self._scaling


def error_from(arguments: list[Any] | None) -> Exception | None:
    """Returns the error with this class name and these arguments."""
    if arguments is None:
        return None
    name, *args = arguments
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
    error = error_from(given.get("error"))
    spec = dict(given.get("spec", {}))
    lookup = FakeBackend(len(spec.get("labels", ["one"])))
    if not isinstance(error, Unauthorized | Forbidden | QuotaExceeded):
        lookup.error = cast("EmbedServeError | None", error)
    lookup.delay_s = given.get("delay_s", 0.0)
    lookup.tiers = [Tier[name] for name in given.get("tiers", ())]
    lookup.cache = CacheState(*given.get("cache", ("up", None, "embedded")))
    if "cache_error" in given:
        lookup.cache = cast(EmbedServeError, error_from(given["cache_error"]))
    if "quantization_ranges" in spec:
        spec["quantization_ranges"] = np.array(spec["quantization_ranges"], dtype=np.float32)
    meter = Meter()
    service = EmbedService(
        replace(SPEC, **spec),
        lookup,
        IngressSettings.model_validate(given.get("settings", {})),
        meter.for_model(SPEC.name),
    )
    stats = FixedMetrics(meter, given.get("exposition", ""), given.get("scaling", []))
    catalog = Catalog([service], stats)
    dialects = [recording(dialect, rendered) for dialect in load_dialects()]
    entrance = FakeEntrance(error, meter, FixedLedger(given.get("costs", []), error))
    app = create_app(catalog, cast(Entrance, entrance), dialects=dialects)
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    return httpx2.AsyncClient(transport=transport, base_url="http://test")


async def send(
    client: httpx2.AsyncClient, ask: str, content: Any, headers: dict[str, str] | None = None
) -> httpx2.Response:
    method, path = ask.split(" ")
    defaults = {} if content is None else {"content-type": "application/json"}
    return await client.request(method, path, content=content, headers=defaults | (headers or {}))


def content_of(pair: Pair) -> Any:
    if pair.get("given", {}).get("endless"):
        return endless()
    if "body" not in pair:
        return pair.get("raw")
    body = json.dumps(pair["body"])
    return re.sub(r"<(\d+) x>", lambda match: "x" * int(match[1]), body)


async def endless() -> AsyncIterator[bytes]:
    yield b"{"
    await asyncio.sleep(60)


def difference(expected: Any, actual: Any) -> str | None:
    """Returns the first difference between two JSON values and its path; None if they are equal."""
    keys: Any
    if isinstance(expected, dict) and isinstance(actual, dict):
        if expected.keys() != actual.keys():
            return f": keys {sorted(actual)}, expected {sorted(expected)}"
        keys = expected
    elif isinstance(expected, list) and isinstance(actual, list):
        if len(expected) != len(actual):
            return f": {len(actual)} items, expected {len(expected)}"
        keys = range(len(expected))
    elif isinstance(expected, str) and "<" in expected:
        parts = re.split("(<[^>]*>)", expected)
        pattern = "".join(PLACEHOLDERS.get(part) or re.escape(part) for part in parts)
        return (
            None if re.fullmatch(pattern, str(actual)) else f": {actual!r}, expected {expected!r}"
        )
    else:
        equal = expected == actual and isinstance(expected, bool) == isinstance(actual, bool)
        return None if equal else f": {actual!r}, expected {expected!r}"
    differences = ((key, difference(expected[key], actual[key])) for key in keys)
    return next((f".{key}{inner}" for key, inner in differences if inner), None)


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
    headers = {"content-type": "application/json"} | pair.get("told", {})
    for name, value in headers.items():
        actual = reply.headers.get(name)
        assert (actual is None) if value is None else not difference(value, actual), (name, actual)
    assert reply.headers["x-embedding-space"] == SPEC.space_id
    expected = pair["reply"]
    if isinstance(expected, str):
        assert reply.text == expected
    else:
        assert difference(expected, reply.json()) is None
    assert rendered == ([pair["error"]] if "error" in pair else [])


BY_PATH = endpoints_by_path(load_dialects())
VIEWS = all_views(load_dialects())
#: Errors without a pair: an unknown path never belongs to TEI.
EXEMPT = {
    ("tei", "RouteNotFound"),
    ("tei", "ImageFetchError"),  # its requests hold no images
    # Rendered before a path is known; see test_http_protocol.py.
    *product(("openai", "tei"), ("HeaderTimeout", "HeaderTooLarge")),
}


def outcomes(dialect: str) -> list[tuple[str, str, bool]]:
    """Returns the method, the path and the success of each pair of a dialect."""
    return [
        (*pair["ask"].split(" "), pair["status"] == 200 and "error" not in pair)
        for pair in PAIRS[dialect]
    ]


def path_pattern(path: str) -> str:
    """Returns a regular expression that matches a route's path with any parameters."""
    return re.sub(r"{.*}", ".+", path)


@pytest.mark.parametrize(
    "route",
    [route for candidates in BY_PATH.values() for route in candidates],
    ids=lambda route: f"{route.dialect.name} {route.endpoint.path}",
)
def test_every_endpoint_has_a_pair_that_succeeds_and_one_that_fails(route: DialectEndpoint) -> None:
    endpoint = route.endpoint
    dialect = route.dialect.name.lower().replace(" ", "_")
    kinds = {
        ok
        for method, path, ok in outcomes(dialect)
        if method == "POST" and re.fullmatch(path_pattern(endpoint.path), path.partition("?")[0])
    }
    assert kinds == {True, False}


@pytest.mark.parametrize("route", VIEWS, ids=lambda route: f"{route.view.method} {route.view.path}")
def test_every_view_has_a_pair_that_succeeds_and_one_that_fails(route: DialectView) -> None:
    view = route.view
    pattern = path_pattern(view.path)
    kinds = {
        ok
        for dialect in PAIRS
        for method, path, ok in outcomes(dialect)
        if method == view.method and re.fullmatch(pattern, path.partition("?")[0])
    }
    can_fail = not view.public or view.statuses
    assert kinds == ({True, False} if can_fail else {True})


def client_facing_errors() -> list[str]:
    """Returns the classes of the errors that may be rendered."""
    return [
        name
        for name, cls in inspect.getmembers(errors, inspect.isclass)
        if issubclass(cls, EmbedServeError)
        and not issubclass(cls, errors.ConfigurationError)
        and cls not in (errors.ClientError, errors.ServerError)
    ]


@pytest.mark.parametrize("dialect", ["openai", "tei"])
@pytest.mark.parametrize("name", client_facing_errors())
def test_every_error_has_a_pair(name: str, dialect: str) -> None:
    rendered = {pair.get("error") for pair in PAIRS[dialect]}
    assert (name in rendered) != ((dialect, name) in EXEMPT)
