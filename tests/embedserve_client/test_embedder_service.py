"""Programs of a document backend's embedder, with only their import and the host changed."""

import asyncio
import importlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from embedserve_client import (
    Client,
    HTTPError,
    NetworkError,
    ParseError,
    RateLimitError,
    RequestTimeoutError,
    ServerError,
    SpaceMismatchError,
)
from embedserve_client.compat import embedder_service
from embedserve_client.compat.embedder_service import EmbedderService
from serve_app.command.ports import free_port
from serve_app.config import AppConfig, EmbedServerSettings
from serve_app.engines.hashing_engine import HashingEngine
from serve_app.model_prep.engine_selection import EngineSelection
from serve_app.models import resolve
from serve_app.standalone import StandaloneService
from serve_app.types import Float32
from tests.clients.app_server import equal_vectors, run_server
from tests.embedserve_client.scripted_server import (
    SPACE,
    Action,
    ScriptedServer,
    disconnect,
    error,
    no_response,
    respond,
    running_server,
)

#: The first is the default, and costs 20 nano-dollars for each token.
MODELS = [
    {
        "name": "org/priced",
        "source": "hashing:64",
        "aliases": ["priced"],
        "usd_per_1k_tokens": 2e-5,
    },
    {"name": "org/free", "source": "hashing:32", "max_tokens": 100},
]

VECTOR = [0.5, 0.25, -1.0, 2.0]
ONE_BODY = {"embedding": VECTOR, "dimension": 4, "model": "m", "cached": False, "cost": 0.0}
#: The response for one text.
ONE = respond(200, ONE_BODY, {"x-embedding-space": SPACE})


def batch_body(n: int) -> dict[str, Any]:
    counts = {"total_embeddings": n, "cached_count": 1, "total_cost": 0.1}
    return {"embeddings": [VECTOR] * n, "dimension": 4, "model": "m", **counts}


def batch(n: int) -> Action:
    """The response for n texts, of which one was cached."""
    return respond(200, batch_body(n), {"x-embedding-space": SPACE})


#: As it was, but for the import.
PROGRAM = """
import asyncio, json, os

from embedserve_client.compat.embedder_service import EmbedderService, get_embedder_service


async def build_index(service, documents):
    batch = await service.embed_batch(documents, batch_size=32)
    return [len(batch.embeddings), batch.total_embeddings, batch.dimension, batch.cached_count,
            batch.total_cost]


async def search(service, queries):
    results = await asyncio.gather(*(service.embed_query(query) for query in queries))
    assert all(len(r.embedding) == r.dimension for r in results)
    return [len({tuple(r.embedding) for r in results}), sum(r.cached for r in results),
            sum(r.cost for r in results), *{r.model for r in results}]


async def failure(call):
    try:
        await call
    except Exception as error:
        return [type(error).__name__, str(error)]


service = get_embedder_service()
report = {}
text = asyncio.run(service.embed_text("a cat", model="priced", use_cache=True))
report["text"] = [len(text.embedding), text.model, text.cached, text.cost]
again = asyncio.run(service.embed_text("a cat"))
report["again"] = [again.embedding == text.embedding, again.cached, again.cost]
uncached = asyncio.run(service.embed_text("a cat", use_cache=False))
report["uncached"] = [uncached.cached, uncached.cost]
documents = [f"document {i}" for i in range(3000)]
report["index"] = asyncio.run(build_index(service, [*documents, "", "document 0"]))
report["index again"] = asyncio.run(build_index(service, documents))
report["search"] = asyncio.run(search(service, ["a cat", "a dog", "a dog sat"] * 30))
for name, call in {
    "unknown model": service.embed_text("a cat", model="text-embedding-9"),
    "empty text": service.embed_text(""),
    "empty query": service.embed_query(""),
    "empty batch": service.embed_batch(["", ""]),
    "batch size 0": service.embed_batch(["a cat"], batch_size=0),
    "batch size 4096": service.embed_batch(["a cat"], batch_size=4096),
}.items():
    report[name] = asyncio.run(failure(call))
report["models"] = service.get_available_models()
report["metrics"] = service.get_metrics()
service.reset_metrics()
report["after reset"] = service.get_metrics()
other = EmbedderService(default_model="org/free", enable_caching=False)
free = asyncio.run(other.embed_batch(["a cat", "a cat"]))
report["free"] = [free.model, free.dimension, free.cached_count, free.total_cost]
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A service with a model that has a price and one that has none, and a cache."""
    config = AppConfig.parse({"models": MODELS, "engine": "hashing", "cache": {"url": "none"}})
    selections = [
        EngineSelection(model, resolve(model), "hashing", "fp32") for model in config.models
    ]
    service = StandaloneService(config, selections, EmbedServerSettings(), "embedder-tests")
    with run_server(service.app, service.start, service.stop) as address:
        yield address


def expected_vectors(texts: list[str]) -> Float32:
    """Returns the exact vectors of the default model; shape (n, 64)."""
    (model, _) = AppConfig.parse({"models": MODELS, "engine": "hashing"}).models
    engine = HashingEngine(resolve(model))
    return engine.run("embed", engine.tokenizer.encode(texts))


def run_program(address: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM],
        env={**os.environ, "EMBEDSERVE_URL": address},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_program_runs_on_the_service(url: str) -> None:
    EmbedderService(base_url=url).reset_metrics()
    completed = run_program(url)
    assert completed.returncode == 0, completed.stderr
    report = json.loads(completed.stdout)
    # A token costs 20 nano-dollars, and the tokenizer takes each word for one.
    assert report["text"] == [64, "org/priced", False, 4e-8]
    assert report["again"] == [True, True, 0.0]
    assert report["uncached"] == [False, 4e-8]
    assert report["index"] == [3001, 3001, 64, 1, 0.00012]
    assert report["index again"] == [3000, 3000, 64, 3000, 0.0]
    # The model has no prompts, so a query has the vector of an equal document.
    assert report["search"] == [3, 88, 1e-7, "org/priced"]
    assert report["unknown model"][0] == "HTTPError"
    assert "'org/priced', 'org/free'" in report["unknown model"][1]
    assert report["empty text"] == ["ValueError", "`text` is empty. Pass at least one character."]
    assert report["empty query"] == ["ValueError", "`query` is empty. Pass at least one character."]
    assert report["empty batch"][0] == "ValueError"
    assert report["batch size 0"] == ["ValueError", "`batch_size` must be at least 1; it was 0."]
    assert report["batch size 4096"][0] == "HTTPError"
    assert "between 1 and 2048" in report["batch size 4096"][1]
    assert [model["name"] for model in report["models"]] == ["org/priced", "org/free"]
    assert report["models"][1] == {
        "name": "org/free",
        "provider": "local",
        "dimension": 32,
        "max_batch_size": 2048,
        "max_input_length": 100,
        "cost_per_1k_tokens": 0.0,
    }
    metrics = report["metrics"]
    assert metrics["total_embeddings_generated"] == 3004
    assert metrics["cache_hit_rate"] == pytest.approx(3090 / 6094)
    assert metrics["total_cost_usd"] == 0.00012018
    assert metrics["models_loaded"] == ["org/priced", "org/free"]
    assert report["after reset"]["total_embeddings_generated"] == 0
    assert report["free"] == ["org/free", 32, 0, 0.0]


def test_all_clients_report_the_same_cost(url: str) -> None:
    text = "a text of five words"
    with Client(url) as client:
        computed = client.embed([text, "word"], use_cache=False).info
        assert (computed.cached, computed.cost_usd) == (0, 1.2e-7)
        client.embed([text])
        cached = client.embed([text]).info
        assert (cached.cached, cached.cost_usd) == (1, 0.0)
        assert client.embed([text], model="org/free").info.cost_usd is None
    batch = asyncio.run(EmbedderService(base_url=url).embed_batch([text, "word"], use_cache=False))
    assert (batch.cached_count, batch.total_cost) == (0, 1.2e-7)


def test_without_a_service_a_program_gets_errors() -> None:
    address = f"http://127.0.0.1:{free_port()}"
    service = EmbedderService(base_url=address, max_retries=1, retry_delay_s=0.0)
    with pytest.raises(NetworkError, match="Can't connect"):
        asyncio.run(service.embed_text("a"))
    with pytest.raises(NetworkError, match="Can't connect"):
        asyncio.run(service.embed_batch(["a"] * 1000))
    for method in (service.get_available_models, service.get_metrics, service.reset_metrics):
        with pytest.raises(NetworkError, match="Can't connect"):
            method()


def test_a_service_that_returns_is_used_again() -> None:
    port = free_port()
    service = EmbedderService(base_url=f"http://127.0.0.1:{port}", max_retries=0)
    with pytest.raises(NetworkError):
        asyncio.run(service.embed_text("a"))
    with running_server(port) as server:
        server.script = [ONE]
        assert asyncio.run(service.embed_text("a")).embedding == VECTOR


def test_vectors_are_in_order(url: str) -> None:
    texts = [f"text {i % 100} of {i}" for i in range(200)]
    service = EmbedderService(base_url=url)
    batch = asyncio.run(service.embed_batch(texts, batch_size=7))
    assert equal_vectors(batch.embeddings, expected_vectors(texts))
    single = asyncio.run(service.embed_text(texts[3]))
    assert equal_vectors(single.embedding, expected_vectors(texts)[3])


def test_threads_and_event_loops_share_the_service_of_the_process(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDSERVE_URL", url)
    importlib.reload(embedder_service)  # it has one service for the whole process

    async def embed(i: int) -> tuple[int, list[float]]:
        service = embedder_service.get_embedder_service()
        results = await asyncio.gather(*(service.embed_query(f"text {i}") for _ in range(20)))
        assert len({tuple(result.embedding) for result in results}) == 1
        assert len(service.get_available_models()) == 2  # blocks, but works in an event loop
        return id(service), results[0].embedding

    with ThreadPoolExecutor(8) as threads:
        rows = [*threads.map(lambda i: asyncio.run(embed(i)), range(16))]
    assert len({identity for identity, _ in rows}) == 1
    expected = expected_vectors([f"text {i}" for i in range(16)])
    assert equal_vectors([vector for _, vector in rows], expected)


class TestArguments:
    def test_what_a_client_can_not_use_is_a_warning_once(self) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            for _ in range(3):
                service = EmbedderService(openai_api_key="sk-secret", redis_client=object())
            EmbedderService(openai_api_key=None, redis_client=None)
        assert len(caught) == 2
        assert "OPENAI_API_KEY in the environment of the service" in str(caught[0].message)
        assert "`cache.url` in its configuration" in str(caught[1].message)
        assert all(warning.filename == __file__ for warning in caught)
        assert "sk-secret" not in f"{service!r} {vars(service)} {caught[0].message}"

    def test_positions_are_those_of_the_former_constructor(self) -> None:
        with pytest.warns(UserWarning, match="no effect"):
            service = EmbedderService("org/model", "sk", object(), False)
        assert service.model == "org/model"

    def test_model_cache_and_batch_size_are_sent(self, server: ScriptedServer) -> None:
        service = EmbedderService("org/default", base_url=server.url, concurrency=1)
        server.script = [ONE, ONE, *[batch(2)] * 2, batch(1)]
        asyncio.run(service.embed_text("a"))
        asyncio.run(service.embed_query("q", model="other", use_cache=False))
        result = asyncio.run(service.embed_batch(["a", "", "b", "c", "d", "e"], batch_size=2))
        assert server.bodies == [
            {"text": "a", "model": "org/default", "use_cache": True},
            {"query": "q", "model": "other", "use_cache": False},
            *(
                {"texts": texts, "batch_size": 2, "model": "org/default", "use_cache": True}
                for texts in (["a", "b"], ["c", "d"], ["e"])
            ),
        ]
        assert server.paths == ["/embed/text", "/embed/query", *["/embed/batch"] * 3]
        assert (result.total_embeddings, result.cached_count) == (5, 3)
        assert result.total_cost == 0.3  # of 0.1 for each request

    def test_caching_can_be_disabled(self, server: ScriptedServer) -> None:
        service = EmbedderService(base_url=server.url, enable_caching=False)
        server.script = [ONE, batch(1)]
        asyncio.run(service.embed_text("a", use_cache=True))
        asyncio.run(service.embed_batch(["a"]))
        assert [body["use_cache"] for body in server.bodies] == [False, False]

    def test_a_string_is_no_batch(self) -> None:
        with pytest.raises(ValueError, match="Pass a list of strings"):
            asyncio.run(EmbedderService().embed_batch("text"))


class TestFaults:
    def test_transient_failures_are_retried(self, server: ScriptedServer) -> None:
        service = EmbedderService(base_url=server.url, max_retry_delay_s=0.0)
        server.script = [disconnect, error(500), error(429), ONE]
        assert asyncio.run(service.embed_text("a")).embedding == VECTOR
        assert len(server.bodies) == 4

    @pytest.mark.parametrize(
        ("action", "expected"),
        [
            (disconnect, NetworkError),
            (error(429), RateLimitError),
            (error(503), ServerError),
            (no_response, RequestTimeoutError),
            (respond(401, {"detail": "no"}), HTTPError),
        ],
    )
    def test_failures_are_those_of_the_client(
        self, server: ScriptedServer, action: Action, expected: type[Exception]
    ) -> None:
        service = EmbedderService(base_url=server.url, max_retries=0, timeout_s=0.5)
        server.script = [action, action]
        with pytest.raises(expected):
            asyncio.run(service.embed_text("a"))
        with pytest.raises(expected):
            asyncio.run(service.embed_batch(["a"]))

    @pytest.mark.parametrize(
        "body",
        [
            b"<html>",
            [],
            {},
            {"detail": "ok"},
            {**ONE_BODY, "embedding": None},
            {**ONE_BODY, "embedding": VECTOR[1:]},
            {**ONE_BODY, "embedding": [*VECTOR[1:], "x"]},
            {**ONE_BODY, "embedding": [*VECTOR[1:], 1e300]},
            b'{"embedding":[NaN],"dimension":1,"model":"m","cached":false,"cost":0.0}',
        ],
    )
    def test_malformed_vectors_are_rejected(self, server: ScriptedServer, body: Any) -> None:
        server.script = [respond(200, body)]
        with pytest.raises(ParseError):
            asyncio.run(EmbedderService(base_url=server.url).embed_text("a"))

    @pytest.mark.parametrize(
        "rows", [[VECTOR], [VECTOR] * 3, [VECTOR, VECTOR[1:]], [VECTOR, None], None]
    )
    def test_half_a_list_is_rejected(self, server: ScriptedServer, rows: Any) -> None:
        server.script = [respond(200, {**batch_body(2), "embeddings": rows})]
        with pytest.raises(ParseError):
            asyncio.run(EmbedderService(base_url=server.url).embed_batch(["a", "b"]))

    def test_another_space_is_rejected(self, server: ScriptedServer) -> None:
        service = EmbedderService(base_url=server.url)
        server.script = [ONE, respond(200, ONE_BODY, {"x-embedding-space": "other-fp32"})]
        asyncio.run(service.embed_text("a"))
        with pytest.raises(SpaceMismatchError):
            asyncio.run(service.embed_text("a"))

    def test_another_service_has_no_models(self, server: ScriptedServer) -> None:
        with pytest.raises(HTTPError, match="Not found"):
            EmbedderService(base_url=server.url).get_available_models()

    def test_a_local_model_does_not_replace_it(self) -> None:
        """Its vectors have neither a cost nor a cache."""
        address = f"http://127.0.0.1:{free_port()}"
        service = EmbedderService(base_url=address, fallback="local", max_retries=0)
        with pytest.raises(NetworkError, match="can't embed for an EmbedderService"):
            asyncio.run(service.embed_text("a"))
