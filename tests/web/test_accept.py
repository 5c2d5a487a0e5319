"""The header `Accept`: raw vectors or JSON."""

import pytest
from starlette.testclient import TestClient

from serve_app.config import IngressSettings
from serve_app.service.catalog import Catalog
from serve_app.service.embed import EmbedService
from serve_app.web.accept import parse_weights
from serve_app.web.app import create_app
from tests.fakes import SPEC, FakeBackend

JSON, RAW = "application/json", "application/octet-stream"


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        (RAW, RAW),
        (RAW.upper(), RAW),
        (f"{RAW};q=0.1", RAW),
        (f"{RAW} ; Q=0.5, {JSON};q=0.4", RAW),
        (f"{JSON}, {RAW}", RAW),
        (f"*/*, {RAW}", RAW),
        (f"{RAW}, text/html;q=0.9, */*;q=0.8", RAW),
        (f"application/*;q=0.2, */*;q=0.9, {RAW};q=0.3", RAW),
        (f"{JSON}, {RAW};q=0.1", JSON),
        (f"application/*, {RAW};q=0.9", JSON),
        (f"*/*, {RAW};q=0.9", JSON),
        (f"{RAW};q=0", JSON),
        (f"{RAW};q=0.000, */*;q=0.1", JSON),
        (f"{RAW};q=high", JSON),
        (f"{RAW};q=2", JSON),
        (f"{RAW}s", JSON),
        ("*/*", JSON),
        ("application/*", JSON),
        ("text/html", JSON),
        ("", JSON),
    ],
)
def test_accept_is_weighed(accept: str, media_type: str) -> None:
    with TestClient(
        create_app(Catalog([EmbedService(SPEC, FakeBackend(), IngressSettings())]))
    ) as client:
        reply = client.post("/embed", json={"inputs": "a"}, headers={"accept": accept})
    assert reply.headers["content-type"] == media_type
    assert reply.headers["vary"] == "accept"


def test_a_repeated_member_has_its_highest_weight() -> None:
    assert parse_weights("a;q=0.1, A;x=1;q=0.5 , ,b;level=1") == {"a": 0.5, "b": 1.0}
