"""A whole service in front of each provider: the same promises, whatever the provider does."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import numpy as np
import pytest
import yaml

from serve_app.command.ports import free_port
from serve_app.config import AppConfig, EmbedServerSettings
from serve_app.model_prep.engine_selection import select_engines
from serve_app.standalone import StandaloneService
from serve_app.types import Float32
from tests.clients import app_server
from tests.providers import fake_servers
from tests.providers.fake_servers import (
    DIM,
    KEY,
    FakeServer,
    Kind,
    count_tokens,
    fake_vectors,
    run_fake_server,
)
from tests.standalone.test_command import running as running_command

KEY_ENV = "FAKE_PROVIDER_KEY"
TEXTS = ["one text", "Zürich and 北京"]


class Case(NamedTuple):
    """A source, the server that it calls, and what the server gets for a query and a document."""

    kind: Kind
    source: str
    query: str = ""
    document: str = ""


CASES = {
    "openai": Case("openai", "openai:text-embedding-3-large"),
    "azure": Case("azure", "azure:text-embedding-3-large"),
    "compatible": Case("openai", "compatible:org/model"),
    "cohere": Case("cohere", "cohere:embed-v4.0", "search_query", "search_document"),
    "voyage": Case("voyage", "voyage:voyage-4", "query", "document"),
}
# Voyage's client logs a lost connection with a method that Python has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:The 'warn' method is deprecated")


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture
def server(case: Case, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.setenv(KEY_ENV, KEY)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")  # tokens are those of the fake server
    with run_fake_server(case.kind) as server:
        yield server


def model(source: str, url: str, **provider: Any) -> dict[str, Any]:
    settings = {"base_url": url, "dimensions": DIM, "max_retries": 0} | provider
    return {"name": "remote", "source": source, "provider": settings}


@asynccontextmanager
async def running(settings: dict[str, Any]) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of a service with one model."""
    config = AppConfig.parse({"model": settings, "cache": {"url": "none"}})
    service = StandaloneService(config, select_engines(config), EmbedServerSettings(), "test")
    await service.start()
    transport = httpx2.ASGITransport(service.app)
    try:
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client
    finally:
        await service.stop()


@pytest.fixture
async def client(case: Case, server: FakeServer) -> AsyncIterator[httpx2.AsyncClient]:
    async with running(model(case.source, server.url, api_key_env=KEY_ENV)) as client:
        yield client


async def embed(client: httpx2.AsyncClient, **fields: Any) -> httpx2.Response:
    headers = fields.pop("headers", {})
    return await client.post("/v1/embeddings", json={"input": TEXTS} | fields, headers=headers)


def vectors(reply: httpx2.Response) -> Float32:
    assert reply.status_code == 200, reply.text
    return np.array([item["embedding"] for item in reply.json()["data"]], np.float32)


async def test_queries_and_documents_have_the_vectors_of_the_provider(
    case: Case, client: httpx2.AsyncClient, server: FakeServer
) -> None:
    for input_type, sent in (("query", case.query), ("document", case.document)):
        for _ in range(2):
            reply = await embed(client, input_type=input_type)
            assert np.array_equal(vectors(reply), fake_vectors(*TEXTS, input_type=sent))
            assert reply.json()["usage"]["total_tokens"] == count_tokens(*TEXTS)
    assert len(server.received) == len({case.query, case.document})


@pytest.mark.parametrize(
    ("name", "status"),
    [
        *((name, 502) for name in ("GARBAGE", "HALF_LIST", "TOO_WIDE", "NAN", "UNAUTHORIZED")),
        *((name, 503) for name in ("CLOSED", "CUT_OFF", "SERVER_ERROR")),
        ("RATE_LIMITED", 429),
    ],
)
async def test_a_failure_is_an_error_and_leaves_nothing_in_the_cache(
    name: str, status: int, client: httpx2.AsyncClient, server: FakeServer, case: Case
) -> None:
    server.script.append(getattr(fake_servers, name))
    reply = await embed(client)
    assert (reply.status_code, KEY in reply.text) == (status, False)
    reply = await embed(client)
    assert reply.headers["x-cache"] == "hits=0; misses=2"
    default = case.document if case.kind == "cohere" else ""
    assert np.array_equal(vectors(reply), fake_vectors(*TEXTS, input_type=default))


@pytest.mark.parametrize("name", ["HANGS", "SLOW_BYTES"])
async def test_the_deadline_is_kept(
    name: str, client: httpx2.AsyncClient, server: FakeServer
) -> None:
    server.script.append(getattr(fake_servers, name))
    reply = await embed(client, headers={"x-request-timeout-s": "0.3"})
    assert reply.status_code in (503, 504)
    assert (await embed(client)).status_code == 200


async def test_the_service_itself_is_a_provider() -> None:
    texts = app_server.TEXTS
    settings = {"prompts": app_server.PROMPTS, "max_tokens": app_server.MAX_TOKENS}
    with app_server.run_app_server() as upstream:
        url = f"{upstream.url}/v1"
        remote = model("compatible:hashing", url, dimensions=app_server.DIM) | settings
        async with running(remote) as client:
            for prompt in ("query", "document"):
                for _ in range(2):
                    reply = await embed(client, input=texts, input_type=prompt)
                    expected = app_server.expected_vectors(*texts, prompt=prompt)
                    assert np.array_equal(vectors(reply), expected)
    assert len(upstream.backend.groups) == 2


@pytest.mark.parametrize("case", ["openai", "cohere", "voyage"], indirect=True)
def test_the_key_is_in_no_output_of_the_service(
    case: Case, server: FakeServer, tmp_path: Path
) -> None:
    key_file = tmp_path / "key"
    key_file.write_text(KEY, "utf-8")
    settings = model(case.source, server.url, api_key_file=str(key_file), max_retries=1)
    args = {"model": settings, "cache": {"url": "none"}}
    port = free_port()
    file = tmp_path / "config.yaml"
    application = {"name": "embedserve", "args": args, "deployments": [{"name": "EmbedServer"}]}
    file.write_text(
        yaml.safe_dump(
            {
                "http_options": {"host": "127.0.0.1", "port": port},
                "applications": [application],
            }
        ),
        "utf-8",
    )
    names = ("SERVER_ERROR", "CLOSED", "CUT_OFF", "GARBAGE", "UNAUTHORIZED", "RATE_LIMITED")
    with (
        running_command(str(file)) as (process, output),
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
    ):
        replies = []
        for name in names:
            server.script.append(getattr(fake_servers, name))
            replies.append(client.post("/v1/embeddings", json={"input": name}))
        replies.append(client.post("/v1/embeddings", json={"input": "forbidden"}))
        replies += [client.get(path) for path in ("/info", "/health", "/metrics", "/openapi.json")]
        process.terminate()
        assert process.stdout is not None
        output += process.stdout.read()
    assert {reply.status_code for reply in replies} > {200, 400}
    texts = [output, *(reply.text + json.dumps(dict(reply.headers)) for reply in replies)]
    assert [text for text in texts if KEY in text] == []
