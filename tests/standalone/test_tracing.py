"""Traces of a standalone service, as a collector gets them."""

import asyncio
import hashlib
import json
import logging
import re
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from serve_app import standalone
from serve_app.config import AppConfig, EmbedServerSettings
from serve_app.errors import ConfigurationError
from serve_app.model_prep.engine_selection import select_engines
from serve_app.standalone import StandaloneService
from serve_app.tracing import check_tracing
from tests.fakes import DIM, FakeEngine
from tests.otlp_receiver import EXPORT_SOON, OTLPReceiver, otlp_receiver
from tests.providers import fake_servers
from tests.providers.fake_servers import FakeServer, Kind, run_fake_server
from tests.standalone.test_command import embed, service_url, write_config
from tests.standalone.test_command import running as running_command

LIMIT_S = 30
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
SAMPLED, NOT_SAMPLED = (f"00-{TRACE}-{SPAN}-{flags}" for flags in ("01", "00"))
#: Occurs in texts and keys, and nowhere else.
MARKER = "hush"


class Running:
    """A service in this process, its engine and a client."""

    def __init__(self, service: StandaloneService, engine: FakeEngine) -> None:
        self.service = service
        self.engine = engine
        transport = httpx2.ASGITransport(service.app)
        self.client = httpx2.AsyncClient(transport=transport, base_url="http://test")

    async def embed(self, *texts: str, **headers: str) -> httpx2.Response:
        return await self.client.post(
            "/v1/embeddings", json={"input": texts}, headers=headers, timeout=LIMIT_S
        )

    async def start_embedding(self, *texts: str, **headers: str) -> "asyncio.Task[httpx2.Response]":
        """Returns a request whose texts the held engine is computing."""
        reply = asyncio.create_task(self.embed(*texts, **headers))
        await until(lambda: [*texts] in self.engine.batches)
        return reply

    async def metric(self, name: str) -> float:
        text = (await self.client.get("/metrics")).text
        return sum(map(float, re.findall(rf"^ray_{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)))

    async def wait_for_metric(self, name: str, at_least: float) -> None:
        async with asyncio.timeout(LIMIT_S):
            while await self.metric(name) < at_least:
                await asyncio.sleep(0.01)


async def until(condition: Any) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.fixture(autouse=True)
def exporters(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in EXPORT_SOON.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEngine]:
    engine = FakeEngine()
    monkeypatch.setattr(standalone, "load_engine", lambda selection, threads: engine)
    yield engine
    engine.release()


@pytest.fixture
def collector() -> Iterator[OTLPReceiver]:
    with otlp_receiver() as receiver:
        yield receiver


@asynccontextmanager
async def running(
    engine: FakeEngine, tracing: dict[str, Any], model: Any = None, **settings: Any
) -> AsyncIterator[Running]:
    config = AppConfig.parse(
        {
            "model": model or {"name": "words", "source": f"hashing:{DIM}"},
            "cache": {"url": "none"},
            "tracing": tracing,
        }
    )
    service = StandaloneService(
        config, select_engines(config), EmbedServerSettings.parse(settings), name="test"
    )
    await service.start()
    running = Running(service, engine)
    try:
        async with running.client:
            yield running
    finally:
        engine.release()
        await service.stop()


@pytest.fixture
async def traced(engine: FakeEngine, collector: OTLPReceiver) -> AsyncIterator[Running]:
    async with running(engine, {"endpoint": collector.url}) as service:
        yield service


async def test_a_trace_has_every_stage_and_the_batch_that_two_requests_shared(
    traced: Running, collector: OTLPReceiver
) -> None:
    traced.engine.hold()
    first = await traced.start_embedding("first")
    others = [asyncio.create_task(traced.embed(text)) for text in ("second", "third")]
    await traced.wait_for_metric("embedserve_queued_tokens", len("firstsecondthird"))
    traced.engine.release()
    assert {(await reply).status_code for reply in (first, *others)} == {200}
    assert ["second", "third"] in traced.engine.batches
    await asyncio.to_thread(collector.wait_for, *3 * ["POST /v1/embeddings"], *2 * ["batch"])
    batch = next(s for s in collector.spans if s.attributes.get("embedserve.texts") == 2)
    both = [span for span in collector.spans if span.span_id in batch.links]
    assert {span.name for span in both} == {"infer"}
    one, other = both if both[0].trace_id == batch.trace_id else both[::-1]
    stages = {
        ("", "POST /v1/embeddings"),
        ("POST /v1/embeddings", "cache"),
        ("cache", "queue"),
        ("queue", "tokenize"),
        ("cache", "infer"),
    }
    assert collector.tree(one.trace_id) == {*stages, ("infer", "batch")}
    assert collector.tree(other.trace_id) == stages
    assert other.trace_id != one.trace_id
    assert other.links == {batch.span_id}
    assert batch.attributes["embedserve.tokens"] == len("secondthird")
    request = collector.one("POST /v1/embeddings", one.trace_id)
    assert (request.kind, request.failed) == ("SERVER", False)
    expected = {
        "http.request.method": "POST",
        "http.route": "/v1/embeddings",
        "http.response.status_code": 200,
        "embedserve.dialect": "OpenAI",
        "embedserve.model": "words",
        "embedserve.lane": "interactive",
        "embedserve.texts": 1,
    }
    assert {name: request.attributes[name] for name in expected} == expected
    spans = collector.trace(one.trace_id)
    assert all(request.start_s <= s.start_s <= s.end_s <= request.end_s for s in spans)
    queue, infer = (collector.one(name, one.trace_id) for name in ("queue", "infer"))
    assert queue.end_s <= infer.start_s


async def test_the_cache_says_what_it_found_and_which_request_it_joined(
    traced: Running, collector: OTLPReceiver
) -> None:
    assert (await traced.embed("cached")).status_code == 200
    traced.engine.hold()
    first = await traced.start_embedding("new")
    second = asyncio.create_task(traced.embed("cached", "new"))
    await traced.wait_for_metric("embedserve_coalesced_total", 1)
    traced.engine.release()
    await asyncio.gather(first, second)
    await asyncio.to_thread(collector.wait_for, *3 * ["cache"])
    (joined,) = (s for s in collector.spans if s.attributes.get("embedserve.joined"))
    assert (joined.attributes["embedserve.l1"], joined.attributes["embedserve.joined"]) == (1, 1)
    linked = next(s for s in collector.spans if s.span_id in joined.links)
    assert linked.name == "cache"
    assert linked.trace_id != joined.trace_id
    assert (linked.attributes["embedserve.computed"], linked.attributes["embedserve.joined"]) == (
        1,
        0,
    )


async def test_the_context_of_a_client_is_continued(
    traced: Running, collector: OTLPReceiver
) -> None:
    reply = await traced.embed("a", traceparent=SAMPLED, tracestate="vendor=1")
    assert reply.headers["traceparent"] == SAMPLED
    assert (await traced.embed("b", traceparent=NOT_SAMPLED)).status_code == 200
    assert (await traced.embed("c", traceparent=f"00-{'0' * 32}-{SPAN}-01")).status_code == 200
    await asyncio.to_thread(collector.wait_for, *2 * ["POST /v1/embeddings"])
    request = collector.one("POST /v1/embeddings", TRACE)
    assert request.parent_id == SPAN
    assert all(span.name == "POST /v1/embeddings" or span.parent_id for span in collector.spans)
    others = {s.trace_id for s in collector.spans} - {TRACE}
    assert len(others) == 1  # the malformed one has a trace of its own, the unsampled one none


async def test_a_ratio_of_0_exports_only_what_a_client_samples(
    engine: FakeEngine, collector: OTLPReceiver
) -> None:
    tracing = {"endpoint": collector.url, "sample_ratio": 0}
    async with running(engine, tracing) as service:
        assert (await service.embed("a")).status_code == 200
        assert (await service.embed("b", traceparent=SAMPLED)).status_code == 200
    assert {span.trace_id for span in collector.spans} == {TRACE}


async def test_the_last_spans_are_exported_when_the_service_stops(
    engine: FakeEngine, collector: OTLPReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    async with running(engine, {"endpoint": collector.url}) as service:
        await service.embed("a")
        assert collector.spans == []
    assert "POST /v1/embeddings" in {span.name for span in collector.spans}


async def test_errors_are_marked_without_their_messages(
    traced: Running, collector: OTLPReceiver
) -> None:
    assert (await traced.embed("nan")).status_code == 500
    assert (await traced.client.post("/v1/embeddings", json={"input": 1})).status_code == 400
    await asyncio.to_thread(collector.wait_for, *2 * ["POST /v1/embeddings"])
    by_status = {
        span.attributes["http.response.status_code"]: span
        for span in collector.spans
        if span.kind == "SERVER"
    }
    assert (by_status[500].failed, by_status[400].failed) == (True, False)
    cache = collector.one("cache", by_status[500].trace_id)
    assert (cache.failed, cache.attributes["error.type"]) == (True, "InferenceError")
    assert {span.status_message for span in collector.spans} == {""}


async def test_a_request_whose_time_is_up_shows_where_it_waited(
    traced: Running, collector: OTLPReceiver
) -> None:
    traced.engine.hold()
    first = await traced.start_embedding("first")
    late = await traced.embed("late", **{"x-request-timeout-s": "0.05"})
    assert late.status_code == 504
    traced.engine.release()
    await first
    await asyncio.to_thread(collector.wait_for, *2 * ["POST /v1/embeddings"])
    request = next(s for s in collector.spans if s.attributes.get("error.type") == "504")
    queue = collector.one("queue", request.trace_id)
    assert queue.end_s - queue.start_s >= 0.04
    assert "infer" not in {span.name for span in collector.trace(request.trace_id)}


async def test_neither_texts_nor_keys_are_exported(
    engine: FakeEngine, collector: OTLPReceiver
) -> None:
    secret = f"es-{MARKER}-0123456789"
    key = {"name": "search", "sha256": hashlib.sha256(secret.encode()).hexdigest()}
    headers = {"authorization": f"Bearer {secret}"}
    async with running(engine, {"endpoint": collector.url}, access={"keys": [key]}) as service:
        for text in (MARKER, f"nan {MARKER}", f"boom {MARKER}"):
            await service.embed(text, **headers)
        await service.client.post("/embed/query", json={"query": MARKER}, headers=headers)
        await service.client.post(
            f"/v1/embeddings?key={MARKER}", json={"input": MARKER, MARKER: 1}, headers=headers
        )
        await service.embed("a", authorization=f"Bearer {MARKER}")
    assert len([span for span in collector.spans if span.kind == "SERVER"]) == 6
    assert not any(MARKER.encode() in body for body in collector.bodies)


@pytest.mark.parametrize("trouble", ["refused", "no answer", "500", "garbage"])
async def test_a_collector_that_fails_changes_no_reply(
    engine: FakeEngine,
    collector: OTLPReceiver,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    trouble: str,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    url = "http://127.0.0.1:9" if trouble == "refused" else collector.url
    if trouble == "no answer":
        collector.answers.clear()
    collector.status = 500 if trouble == "500" else 404 if trouble == "garbage" else 200
    async with asyncio.timeout(LIMIT_S):
        async with running(engine, {"endpoint": url}) as service:
            for i in range(20):
                assert (await service.embed(f"text {i}")).status_code == 200
            await service.wait_for_metric("embedserve_spans_dropped_total", 2)
            for i in range(20):
                assert (await service.embed(f"more {i}")).status_code == 200
            assert await service.metric("embedserve_spans_exported_total") == 0
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "takes no spans" in warnings[0]


async def test_a_collector_that_recovers_gets_the_spans_that_follow(
    traced: Running, collector: OTLPReceiver
) -> None:
    collector.status = 400
    await traced.embed("lost")
    await traced.wait_for_metric("embedserve_spans_dropped_total", 1)
    collector.status = 200
    await traced.embed("kept")
    await traced.wait_for_metric("embedserve_spans_exported_total", 1)


async def test_a_full_queue_drops_spans_and_counts_them(
    engine: FakeEngine, collector: OTLPReceiver
) -> None:
    collector.answers.clear()
    tracing = {"endpoint": collector.url, "max_queued_spans": 512}
    async with running(engine, tracing) as service:
        for _ in range(700):  # with two spans each
            assert (await service.embed("a")).status_code == 200
        dropped = await service.metric("embedserve_spans_dropped_total")
        assert 700 * 2 - 512 - 512 <= dropped <= 700 * 2 - 512 + 10  # a batch is with the exporter
        collector.answers.set()
        await service.wait_for_metric("embedserve_spans_exported_total", 512)


def test_json_records_have_the_ids_of_the_trace(collector: OTLPReceiver, tmp_path: Path) -> None:
    file = write_config(tmp_path, request_log=True)
    config = yaml.safe_load(file.read_text("utf-8"))
    config["applications"][0]["args"]["tracing"] = {"endpoint": collector.url}
    file.write_text(yaml.safe_dump(config), "utf-8")
    with running_command(file, "--log-format", "json") as (process, output):
        for parent in (SAMPLED, NOT_SAMPLED):
            embed(service_url(output), "a", **{"traceparent": parent, "x-request-id": "id-1"})
        process.send_signal(signal.SIGTERM)
        final_output, _ = process.communicate(timeout=30)
    first, second = (json.loads(line) for line in final_output.splitlines() if "POST" in line)
    request = collector.one("POST /v1/embeddings", TRACE)
    assert (first["trace_id"], first["span_id"]) == (TRACE, request.span_id)
    assert second["trace_id"] == TRACE
    assert (first["request_id"], first["model"], first["key"]) == ("id-1", "words", None)
    assert request.attributes["embedserve.request_id"] == "id-1"


async def test_the_environment_names_collector_service_and_headers(
    engine: FakeEngine, collector: OTLPReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-from=environment")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "search")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    async with running(engine, {"endpoint": "environment"}) as service:
        await service.embed("a")
    assert collector.paths[0] == "/v1/traces"
    assert collector.headers[0]["x-from"] == "environment"
    resource = collector.spans[0].resource
    assert resource["service.name"] == "search"
    assert resource["deployment.environment.name"] == "test"
    assert resource["embedserve.deployment"] == "standalone"


async def test_settings_name_path_service_and_headers(
    engine: FakeEngine, collector: OTLPReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLLECTOR_HEADERS", "authorization=Bearer%20secret,x-tenant=a")
    tracing = {
        "endpoint": f"{collector.url}/otlp/spans",
        "headers_env": "COLLECTOR_HEADERS",
        "service_name": "search",
    }
    async with running(engine, tracing) as service:
        await service.embed("a")
    assert collector.paths[0] == "/otlp/spans"
    assert collector.headers[0]["authorization"] == "Bearer secret"
    assert collector.headers[0]["x-tenant"] == "a"
    assert collector.spans[0].resource["service.name"] == "search"


async def test_the_environment_can_switch_traces_off(
    engine: FakeEngine, collector: OTLPReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    async with running(engine, {"endpoint": collector.url}) as service:
        assert (await service.embed("a", traceparent=SAMPLED)).status_code == 200
    assert collector.bodies == []


@pytest.mark.parametrize("value", [None, "hush", "a b=hush", "=hush"])
async def test_headers_that_are_missing_or_malformed_stop_the_start(
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    value: str | None,
) -> None:
    if value is not None:
        monkeypatch.setenv("COLLECTOR_HEADERS", value)
    tracing = {"endpoint": "http://127.0.0.1:9", "headers_env": "COLLECTOR_HEADERS"}
    with pytest.raises(ConfigurationError, match="COLLECTOR_HEADERS") as error:
        async with running(engine, tracing):
            pass
    assert "hush" not in str(error.value)
    assert "hush" not in caplog.text


def test_without_the_extra_the_start_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "serve_app.tracing.exporter", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    config = AppConfig.parse({"tracing": {"endpoint": "http://127.0.0.1:4318"}})
    with pytest.raises(ConfigurationError, match=r"pip install 'embedserve\[otel\]'"):
        check_tracing(config.tracing)
    check_tracing(AppConfig().tracing)


PROVIDERS: dict[Kind, str] = {
    "openai": "openai:text-embedding-3-large",
    "cohere": "cohere:embed-v4.0",
    "voyage": "voyage:voyage-4",
}


@pytest.mark.parametrize("kind", PROVIDERS)
async def test_a_call_of_a_provider_is_part_of_the_trace(
    engine: FakeEngine, collector: OTLPReceiver, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    monkeypatch.setenv("FAKE_PROVIDER_KEY", fake_servers.KEY)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    with run_fake_server(kind) as server:
        model = remote_model(kind, server)
        async with running(engine, {"endpoint": collector.url}, model) as service:
            assert (await service.embed("a", traceparent=SAMPLED)).status_code == 200
            await service.embed("b", traceparent=NOT_SAMPLED, tracestate="vendor=1")
            assert (await service.embed("c")).status_code == 200
    call = collector.one("provider call", TRACE)
    assert call.kind == "CLIENT"
    assert {("cache", "infer"), ("infer", "provider call")} <= collector.tree(TRACE)
    assert not any(fake_servers.KEY.encode() in body for body in collector.bodies)
    sampled, unsampled, _ = (received.headers for received in server.received)
    assert sampled["traceparent"] == call.traceparent
    assert unsampled["traceparent"].startswith(f"00-{TRACE}-")
    assert unsampled["traceparent"].endswith("-00")
    assert unsampled["tracestate"] == "vendor=1"


async def test_calls_of_a_provider_have_no_context_without_tracing(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_PROVIDER_KEY", fake_servers.KEY)
    with run_fake_server("openai") as server:
        async with running(engine, {}, remote_model("openai", server)) as service:
            assert (await service.embed("a", traceparent=SAMPLED)).status_code == 200
    (received,) = server.received
    assert "traceparent" not in received.headers


def remote_model(kind: Kind, server: FakeServer) -> dict[str, Any]:
    provider = {
        "base_url": server.url,
        "api_key_env": "FAKE_PROVIDER_KEY",
        "dimensions": fake_servers.DIM,
    }
    return {"name": "remote", "source": PROVIDERS[kind], "provider": provider}
