"""Each request is counted once, and its duration with it, whatever its outcome."""

import pytest
from starlette.testclient import TestClient

from serve_app.config import RequestSettings
from serve_app.errors import EmbedServeError, InferenceError, Overloaded
from serve_app.meter import Meter
from serve_app.metrics import REQUEST_DURATION, REQUESTS
from serve_app.service.catalog import Catalog
from serve_app.service.embed import EmbedService
from serve_app.web.app import create_app
from tests.fakes import SPEC, FakeBackend

EMBEDDINGS = "/v1/embeddings"


@pytest.fixture
def lookup() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def meter() -> Meter:
    return Meter()


@pytest.fixture
def client(lookup: FakeBackend, meter: Meter) -> TestClient:
    settings = RequestSettings(max_body_bytes=1024, interactive_max_texts=2)
    service = EmbedService(SPEC, lookup, settings, meter.for_model(SPEC.name))
    return TestClient(create_app(Catalog([service])), raise_server_exceptions=False)


def durations(meter: Meter) -> dict[tuple[str, ...], int]:
    """Returns the number of requests by route, lane and model."""
    return {
        tags: histogram.count
        for (metric, tags), histogram in meter.histograms().items()
        if metric is REQUEST_DURATION
    }


def requests(meter: Meter) -> dict[tuple[str, ...], float]:
    """Returns the number of requests by status and model."""
    return {tags: n for (metric, tags), n in meter.counts().items() if metric is REQUESTS}


def test_requests_are_counted_by_route_lane_and_model(client: TestClient, meter: Meter) -> None:
    client.post(EMBEDDINGS, json={"input": "a"})
    client.post("/v1//embeddings/", json={"input": ["a", "b"]})
    client.post("/openai/deployments/fake/embeddings", json={"input": ["a", "b", "c"]})
    client.post("/tokenize", json={"inputs": "a"})
    assert durations(meter) == {
        (EMBEDDINGS, "interactive", SPEC.name): 2,
        ("/openai/deployments/{model}/embeddings", "bulk", SPEC.name): 1,
        ("/tokenize", "", SPEC.name): 1,
    }
    assert requests(meter) == {("200", SPEC.name): 4}


@pytest.mark.parametrize(
    ("headers", "texts", "lane"),
    [({"x-priority": "bulk"}, 1, "bulk"), ({"x-priority": "interactive"}, 3, "interactive")],
)
def test_the_lane_is_that_of_the_texts(
    client: TestClient,
    lookup: FakeBackend,
    meter: Meter,
    headers: dict[str, str],
    texts: int,
    lane: str,
) -> None:
    client.post(EMBEDDINGS, json={"input": ["a", "b", "c"][:texts]}, headers=headers)
    assert durations(meter) == {(EMBEDDINGS, lane, SPEC.name): 1}
    assert lookup.groups[0].lane == lane


def test_a_failed_request_is_counted_once(
    client: TestClient, lookup: FakeBackend, meter: Meter
) -> None:
    for error in (InferenceError("It failed."), Overloaded("Full.", 1), EmbedServeError("A bug.")):
        lookup.error = error
        client.post(EMBEDDINGS, json={"input": "a"})
    assert durations(meter) == {(EMBEDDINGS, "interactive", SPEC.name): 3}
    assert sum(requests(meter).values()) == 3
    assert requests(meter)["429", SPEC.name] == 1


def test_what_failed_before_a_model_was_selected_has_neither_lane_nor_model(
    client: TestClient, meter: Meter
) -> None:
    client.post(EMBEDDINGS, json={"input": "a", "model": "unknown"})
    client.post(EMBEDDINGS, content=b"{", headers={"content-type": "application/json"})
    assert durations(meter) == {(EMBEDDINGS, "", ""): 2}
    assert sum(requests(meter).values()) == 2


def test_requests_whose_body_is_not_read_have_no_duration(client: TestClient, meter: Meter) -> None:
    assert client.post(EMBEDDINGS, json={"input": "a" * 2000}).status_code == 413
    assert client.post(EMBEDDINGS, content=b"a", headers={"content-type": "text/x"}).status_code
    assert durations(meter) == {}
    assert sum(requests(meter).values()) == 2


def test_unknown_paths_and_views_are_not_counted(client: TestClient, meter: Meter) -> None:
    for path in ("/health", "/metrics", "/nothing"):
        client.get(path)
    client.post("/nothing", json={})
    assert (durations(meter), requests(meter)) == ({}, {})


def test_tei_s_names_are_an_option(lookup: FakeBackend) -> None:
    for is_on in (False, True):
        service = EmbedService(SPEC, lookup, RequestSettings(tei_metrics=is_on))
        client = TestClient(create_app(Catalog([service])))
        client.post(EMBEDDINGS, json={"input": "a"})
        page = client.get("/metrics").text
        assert (f'te_request_success{{model="{SPEC.name}"}} 1.0' in page) is is_on
        assert "ray_embedserve_requests_total" in page


def test_totals_have_the_seconds_of_all_requests(
    client: TestClient, lookup: FakeBackend, meter: Meter
) -> None:
    client.post(EMBEDDINGS, json={"input": "a"})
    succeeded_s = meter.totals().seconds
    lookup.error = InferenceError("It failed.")
    client.post(EMBEDDINGS, json={"input": "b"})
    totals = meter.totals()
    assert (totals.requests, totals.failed) == (2, 1)
    assert totals.seconds > succeeded_s > 0
