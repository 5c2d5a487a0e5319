"""A local model and one that a fake provider runs, on Ray, with traces of both."""

import asyncio
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil
import pytest

from serve_app.command.checked_service import CheckedService
from serve_app.command.served_models import served_models
from tests.on_ray.conftest import SEPARATE, Service, running_service, service_config
from tests.otlp_receiver import EXPORT_SOON, OTLPReceiver, ReceivedSpan, otlp_receiver
from tests.providers import fake_servers
from tests.providers.fake_servers import DIM, KEY, FakeServer, fake_vectors, run_fake_server

REMOTE = "text-embedding-3-small"
#: Each batch takes a second, so that further requests share the next one.
SLOW = {"name": "slow", "source": "hashing:24", "batch_cost": {"fixed_s": 1.0}}

#: The spans of a request below the one of the ingress. A batch ends before its `infer`.
STAGES = (
    *2 * ["cache"],
    "cache.l2",
    "call CacheLookup",
    "call Embedder",
    "queue",
    "tokenize",
    "infer",
)

DRIVER = """
from ray import serve
handle = serve.get_app_handle("embedserve")
context = {"traceparent": "%s"}
print(handle.embed.remote(["from a job"], model="local", trace_context=context).result().shape)
"""


@pytest.fixture(scope="module")
def provider() -> Iterator[FakeServer]:
    with run_fake_server("openai") as server:
        yield server


@pytest.fixture(scope="module")
def collector() -> Iterator[OTLPReceiver]:
    with otlp_receiver() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def mixed(provider: FakeServer, collector: OTLPReceiver) -> Iterator[Service]:
    """A service with local models in the Embedder and a remote one in Providers."""
    with (
        tempfile.TemporaryDirectory(prefix="es-", dir="/tmp") as scratch,
        pytest.MonkeyPatch.context() as environment,
    ):
        for name, value in EXPORT_SOON.items():
            environment.setenv(name, value)
        config = service_config(SEPARATE, scratch)
        key_file = Path(scratch) / "key"
        key_file.write_text(KEY, "utf-8")
        (application,) = config["applications"]
        application["args"]["models"] = [
            {"name": "local", "source": "hashing:16"},
            {
                "name": REMOTE,
                "provider": {
                    "base_url": provider.url,
                    "api_key_file": str(key_file),
                    "dimensions": DIM,
                },
            },
            SLOW,
        ]
        application["args"]["tracing"] = {"endpoint": collector.url, "sample_ratio": 0}
        del application["args"]["model"]
        application["deployments"].append({"name": "Providers", "num_replicas": 1})
        with running_service(SEPARATE, config, scratch) as service:
            yield service


def post(service: Service, path: str, **body: Any) -> httpx2.Response:
    return httpx2.post(f"{service.url}{path}", json=body, timeout=60)


def new_trace() -> tuple[str, str]:
    """Returns the id of a new trace, and the `traceparent` of a client that samples it."""
    trace_id = secrets.token_hex(16)
    return trace_id, f"00-{trace_id}-{secrets.token_hex(8)}-01"


def paths(collector: OTLPReceiver, trace_id: str) -> list[str]:
    """Returns each span of a trace, with its deployment, below the spans above it."""
    spans = {span.span_id: span for span in collector.trace(trace_id)}

    def path(span: ReceivedSpan) -> str:
        name = f"{span.resource['embedserve.deployment']}/{span.name}"
        parent = spans.get(span.parent_id)
        return name if parent is None else f"{path(parent)} > {name}"

    return sorted(path(span) for span in spans.values())


async def test_a_trace_leads_through_all_deployments_to_the_batch(
    mixed: Service, collector: OTLPReceiver
) -> None:
    async def embed(text: str) -> str:
        trace_id, traceparent = new_trace()
        async with httpx2.AsyncClient(timeout=60) as client:
            reply = await client.post(
                f"{mixed.url}/v1/embeddings",
                json={"input": text, "model": "slow"},
                headers={"traceparent": traceparent},
            )
        assert reply.status_code == 200, reply.text
        return trace_id

    # They share a batch: the first one, or the next one if one of them arrives before the others.
    for trace_id in await asyncio.gather(*(embed(f"text {i}") for i in range(4))):
        await asyncio.to_thread(
            collector.wait_for, "POST /v1/embeddings", *STAGES, trace_id=trace_id
        )
    batch = max(
        (span for span in collector.spans if span.name == "batch"),
        key=lambda span: span.attributes["embedserve.texts"],
    )
    shared = [span for span in collector.spans if span.span_id in batch.links]
    assert len({span.trace_id for span in shared}) == batch.attributes["embedserve.texts"] > 1
    others = [span for span in shared if span.trace_id != batch.trace_id]
    assert {span.links for span in others} == {frozenset({batch.span_id})}
    request = "Ingress/POST /v1/embeddings"
    ingress = f"{request} > Ingress/cache"
    lookup = f"{ingress} > Ingress/call CacheLookup > CacheLookup/cache"
    embedder = f"{lookup} > CacheLookup/call Embedder"
    assert paths(collector, batch.trace_id) == [
        request,
        ingress,
        f"{ingress} > Ingress/call CacheLookup",
        lookup,
        f"{lookup} > CacheLookup/cache.l2",
        embedder,
        f"{embedder} > Embedder/infer",
        f"{embedder} > Embedder/infer > Embedder/batch",
        f"{embedder} > Embedder/queue",
        f"{embedder} > Embedder/queue > Embedder/tokenize",
    ]


async def test_a_call_of_a_provider_is_part_of_the_trace(
    mixed: Service, provider: FakeServer, collector: OTLPReceiver
) -> None:
    trace_id, traceparent = new_trace()
    httpx2.post(
        f"{mixed.url}/v1/embeddings",
        json={"input": "traced", "model": REMOTE},
        headers={"traceparent": traceparent},
        timeout=60,
    ).raise_for_status()
    await asyncio.to_thread(collector.wait_for, "provider call", trace_id=trace_id)
    call = collector.one("provider call", trace_id)
    assert call.resource["embedserve.deployment"] == "Providers"
    assert provider.received[-1].headers["traceparent"] == call.traceparent


async def test_a_call_of_a_job_is_part_of_its_trace(
    mixed: Service, collector: OTLPReceiver
) -> None:
    trace_id, traceparent = new_trace()
    assert "(1, 16)" in await asyncio.to_thread(mixed.run_driver, DRIVER % traceparent)
    await asyncio.to_thread(collector.wait_for, "handle embed", *STAGES, trace_id=trace_id)
    (batch,) = (path for path in paths(collector, trace_id) if path.endswith("/batch"))
    assert batch.startswith("Ingress/handle embed > Ingress/cache > Ingress/call CacheLookup > ")
    assert batch.endswith("CacheLookup/call Embedder > Embedder/infer > Embedder/batch")


async def test_the_costs_of_replies_add_up(mixed: Service) -> None:
    def total() -> Decimal:
        reply = httpx2.get(f"{mixed.url}/cost", timeout=30)
        return Decimal(reply.json()["total"]["cost_usd"])

    before = total()
    replies = [
        post(mixed, "/v1/embeddings", input=[f"text {i}", f"another {i}"], model=REMOTE)
        for i in range(20)
    ]
    costs = [Decimal(reply.headers["x-cost-usd"]) for reply in replies]
    assert min(costs) > 0
    await mixed.wait_until(lambda: total() - before == sum(costs))


def test_both_kinds_of_models_answer_and_are_cached(mixed: Service, provider: FakeServer) -> None:
    calls = len(provider.received)
    for _ in range(2):
        reply = post(mixed, "/v1/embeddings", input=["a text", "another"], model=REMOTE)
        vectors = [item["embedding"] for item in reply.json()["data"]]
        assert np.array_equal(np.array(vectors, np.float32), fake_vectors("a text", "another"))
        assert reply.headers["x-cost-usd"] is not None
    assert [received.texts for received in provider.received[calls:]] == [["a text", "another"]]
    reply = post(mixed, "/v1/embeddings", input="a text")
    assert reply.json()["model"] == "local"


def test_errors_of_a_provider_keep_their_status(mixed: Service, provider: FakeServer) -> None:
    provider.script.append(fake_servers.HALF_LIST)
    reply = post(mixed, "/v1/embeddings", input=["wrong", "reply"], model=REMOTE)
    assert reply.status_code == 502
    assert KEY not in reply.text
    reply = post(mixed, "/tokenize", inputs="a", model=REMOTE)
    assert 400 <= reply.status_code < 500
    assert "provider" in reply.text


def test_the_replica_is_replaced(mixed: Service) -> None:
    (pid,) = mixed.replica_pids("Providers")
    psutil.Process(pid).kill()
    reply = post(mixed, "/v1/embeddings", input="after the crash", model=REMOTE)
    assert reply.status_code == 200, reply.text
    assert pid not in mixed.replica_pids("Providers")
    info = httpx2.get(f"{mixed.url}/info", params={"model": REMOTE}, timeout=30).json()
    assert (info["engine"], info["device"]) == ("openai", "remote")


async def test_the_status_lists_models_of_providers(mixed: Service) -> None:
    expected = [("local", "ok", 1, 1), (REMOTE, "ok", 1, 0), ("slow", "ok", 1, 1)]

    def models() -> list[tuple[str, str, int, int]]:
        with closing(CheckedService(mixed.url, None, 30)) as service:
            return [(m.name, m.state, m.replicas, m.loaded) for m in served_models(service)]

    await mixed.wait_until(lambda: models() == expected)
