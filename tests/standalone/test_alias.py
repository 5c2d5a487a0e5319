"""An alias of two models in a real service: shadow, canary, switch, and what reports on them."""

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import numpy as np
import pytest

from embedserve_client.command.main import main
from serve_app.config import AppConfig, EmbedServerSettings
from serve_app.model_prep.engine_selection import select_engines
from serve_app.standalone import StandaloneService
from tests.clients.app_server import run_server
from tests.standalone.hashing_service import run_hashing_service

LIMIT_S = 30
MODELS = [
    {"name": "first", "source": "hashing:64"},
    {"name": "second", "source": "hashing:32", "usd_per_1k_tokens": "0.02"},
]
KEYS = {name: f"es-{name}" for name in ("alice", "bob")}


@contextmanager
def running(**alias: Any) -> Iterator[httpx2.Client]:
    """Serves both models and the alias `words`; yields a client with the key of `bob`."""
    aliases = [{"name": "words", "model": "first", "is_default": True, **alias}]
    config = AppConfig.parse({"models": MODELS, "aliases": aliases, "cache": {"url": "none"}})
    access = {
        "keys": [
            {"name": name, "sha256": hashlib.sha256(key.encode()).hexdigest()}
            for name, key in KEYS.items()
        ]
    }
    settings = EmbedServerSettings.parse({"access": access})
    service = StandaloneService(config, select_engines(config), settings, "alias")
    headers = {"authorization": f"Bearer {KEYS['bob']}"}
    with (
        run_server(service.app, service.start, service.stop) as url,
        httpx2.Client(base_url=url, headers=headers, timeout=LIMIT_S) as client,
    ):
        try:
            yield client
        finally:
            service.end_streams()


def embed(
    client: httpx2.Client, texts: list[str], model: str = "words", **headers: str
) -> httpx2.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    body = {"model": model, "input": texts}
    reply = client.post("/v1/embeddings", json=body, headers=named)
    assert reply.status_code == 200, reply.text
    return reply


def vectors(reply: httpx2.Response) -> Any:
    return np.array([item["embedding"] for item in reply.json()["data"]])


def wait_for_report(client: httpx2.Client, compared: int) -> dict[str, Any]:
    deadline = time.monotonic() + LIMIT_S
    while True:
        (report,) = client.get("/shadow").json()["shadows"]
        if report["sample_texts"] >= compared:
            found: dict[str, Any] = report
            return found
        assert time.monotonic() < deadline, report
        time.sleep(0.02)


TEXTS = [f"the {word} number {i}" for i in range(15) for word in ("red", "green", "blue")]


@pytest.fixture(scope="module")
def shadowed() -> Iterator[httpx2.Client]:
    """A service whose shadow has compared `TEXTS`."""
    with running(shadow={"model": "second", "share": 1.0}) as client:
        reply = embed(client, TEXTS)
        assert reply.json()["model"] == "first"
        wait_for_report(client, len(TEXTS))
        yield client


def test_each_model_has_cached_its_own_vectors(shadowed: httpx2.Client) -> None:
    """The cache that the shadow fills is that of the second model."""
    second = embed(shadowed, TEXTS, "second")
    first = embed(shadowed, TEXTS)
    assert second.headers["x-cache"] == first.headers["x-cache"]
    assert second.headers["x-cache"].startswith(f"hits={len(TEXTS)}; misses=0")
    assert (vectors(first).shape, vectors(second).shape) == ((45, 64), (45, 32))
    assert first.headers["x-embedding-space"] != second.headers["x-embedding-space"]


def test_the_report_compares_both_models(shadowed: httpx2.Client) -> None:
    report = wait_for_report(shadowed, len(TEXTS))
    assert (report["alias"], report["share"], report["replicas"]) == ("words", 1.0, 1)
    assert report["outcomes"] == {"compared": 45}
    answers, shadow = report["answers"], report["shadow"]
    assert (answers["model"], shadow["model"]) == ("first", "second")
    assert answers["texts"] == shadow["texts"] == report["sample_texts"] == 45
    assert answers["tokens"] == shadow["computed_tokens"] > 45
    assert shadow["tokens_per_s"] > 0
    assert answers["cost_usd"] == "0.000000000"
    assert float(shadow["cost_usd"]) == pytest.approx(shadow["tokens"] * 0.02 / 1000)
    # Both hash words, so texts of the same words are near to each other in both.
    assert 0.3 < report["kept"] <= 1
    assert 0.3 < report["rank_correlation"] <= 1
    assert report["cosine"] is None


def test_the_command_prints_it(shadowed: httpx2.Client, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["shadow", "report", str(shadowed.base_url), "--key", KEYS["alice"]]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "first (answers)" in text
    assert "second (shadow)" in text
    assert "45 texts compared by 1 replica(s); dropped: none" in text
    assert "rank correlation" in text
    assert main([*arguments, "--json", "--alias", "words"]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert report["shadow"]["model"] == "second"


def test_clients_do_not_pay_for_the_shadow(shadowed: httpx2.Client) -> None:
    metrics = shadowed.get("/metrics").text
    assert 'embedserve_shadow_texts_total{alias="words",model="second",outcome="compared"}' in (
        metrics
    )
    assert 'embedserve_shadow_neighbor_agreement{alias="words",model="second",neighbors="10"}' in (
        metrics
    )
    with running(shadow={"model": "second", "share": 1.0}) as client:
        embed(client, TEXTS)
        wait_for_report(client, len(TEXTS))
        page = client.get("/metrics").text
        counted = [line for line in page.splitlines() if "_requests_total" in line]
        assert any('model="first"' in line for line in counted)
        assert not any('model="second"' in line for line in counted)
        assert "embedserve_key_tokens_total" in page
        assert 'embedserve_key_tokens_total{key="bob",model="second"}' not in page
        assert client.get("/cost").json()["rows"] == []


def test_info_describes_the_alias(shadowed: httpx2.Client) -> None:
    (alias,) = shadowed.get("/info").json()["alias_models"]
    assert (alias["alias"], alias["model"]) == ("words", "first")
    assert (alias["shadow"]["model"], alias["shadow"]["compared"]) == ("second", 45)
    assert alias["shadow"]["kept"] > 0.3


def test_the_report_needs_a_key_and_an_alias_with_a_shadow(
    shadowed: httpx2.Client, capsys: pytest.CaptureFixture[str]
) -> None:
    def failure(*arguments: str) -> str:
        assert main(["shadow", "report", *arguments]) == 1
        return capsys.readouterr().err

    url = str(shadowed.base_url)
    assert "/shadow: HTTP 401." in failure(url)
    message = failure(url, "--key", KEYS["bob"], "--alias", "other")
    assert "'other' has no shadow. Aliases with one: 'words'" in message
    with run_hashing_service() as other:
        assert "Set `shadow.model` in `aliases`" in failure(other)


def test_a_canary_then_the_switch_with_the_first_model_for_those_that_require_it() -> None:
    alice = {"authorization": f"Bearer {KEYS['alice']}"}
    with running(canary={"model": "second", "keys": ["alice"]}) as client:
        first, second = embed(client, ["a"]), embed(client, ["a"], **alice)
        assert (first.json()["model"], second.json()["model"]) == ("first", "second")
        assert vectors(second).shape == (1, 32)
    spaces = [reply.headers["x-embedding-space"] for reply in (first, second)]
    with running(model="second", canary={"model": "first", "share": 0}) as client:
        assert embed(client, ["a"]).headers["x-embedding-space"] == spaces[1]
        pinned = embed(client, ["a"], x_embedding_space=spaces[0])
        assert pinned.json()["model"] == "first"
        assert np.array_equal(vectors(pinned), vectors(first))
    with running(model="second") as client:
        body = {"model": "words", "input": "a"}
        headers = {"x-embedding-space": spaces[0]}
        assert client.post("/v1/embeddings", json=body, headers=headers).status_code == 409
