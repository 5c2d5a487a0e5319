"""The cache of the running service: exact, shared, and never a cause of failed requests."""

import asyncio
import json
import os
import signal
import time
from base64 import b64decode
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from tests.on_ray.conftest import EVERYWHERE, ON_RAY, SEPARATE, LoadGenerator, Service

CLI = ("-m", "serve_app.command.main", "cache")


def new_texts(n: int) -> list[str]:
    return [f"{time.time_ns()} text {i}" for i in range(n)]


def embed(url: str, texts: Sequence[str], **fields: object) -> tuple[bytes, str]:
    """Returns the vectors in base64, concatenated, and the header `x-cache`."""
    reply = httpx2.post(
        f"{url}/v1/embeddings",
        json={"input": list(texts), "encoding_format": "base64", **fields},
        timeout=120,
    )
    reply.raise_for_status()
    vectors = "".join(item["embedding"] for item in reply.json()["data"])
    return vectors.encode(), reply.headers["x-cache"]


def cache_reports(service: Service) -> dict[str, list[dict[str, Any]]]:
    """Returns the reports of the replicas of each deployment."""
    reports: dict[str, list[dict[str, Any]]] = {}
    for report in json.loads(service.run_python(*CLI, "stats", "--json")):
        reports.setdefault(report["deployment"], []).append(report)
    return reports


@EVERYWHERE
async def test_only_new_texts_are_computed_each_once(service: Service) -> None:
    await asyncio.to_thread(service.wait_for_one_replica)  # each has its own memory
    known, new = new_texts(30), new_texts(3)
    embed(service.url, known)
    _, cache = embed(service.url, [*known[:10], new[0], *known[10:], new[1]])
    assert cache == "hits=30; misses=2; tier=l1"
    before = await service.counter("embedserve_batch_size_texts_sum", at_least=32)
    async with httpx2.AsyncClient(timeout=60) as client:
        replies = await asyncio.gather(
            *(
                client.post(f"{service.url}/v1/embeddings", json={"input": new[2]})
                for _ in range(50)
            )
        )
    assert len({reply.json()["data"][0]["embedding"][0] for reply in replies}) == 1
    assert embed(service.url, new_texts(1))[1] == "hits=0; misses=1"
    assert (
        await service.counter("embedserve_batch_size_texts_sum", at_least=before + 2) == before + 2
    )


@EVERYWHERE
def test_use_cache_false_neither_reads_nor_writes_the_cache(service: Service) -> None:
    service.wait_for_one_replica()
    (text,) = new_texts(1)
    replies = [embed(service.url, [text], use_cache=use) for use in (False, True, False, True)]
    miss, hit = "hits=0; misses=1", "hits=1; misses=0; tier=l1"
    assert [cache for _, cache in replies] == [miss, miss, miss, hit]
    vectors = [np.frombuffer(b64decode(vector), np.float32) for vector, _ in replies]
    assert np.abs(vectors[1] - vectors[2]).max() <= 2e-3  # the bound between batches at bf16
    assert vectors[1].tobytes() == vectors[3].tobytes()


@EVERYWHERE
@pytest.mark.parametrize("fault", ["frozen", "killed"])
async def test_a_cache_server_that_fails_under_load_fails_no_request(
    service: Service, load: LoadGenerator, fault: str
) -> None:
    (server,) = service.cache_servers()
    async with load.run(clients=4, texts=4):
        await load.wait_for(10)
        server.send_signal(signal.SIGSTOP if fault == "frozen" else signal.SIGKILL)
        await load.wait_for(40)
        if fault == "frozen":
            await service.wait_until(lambda: service.health()["status"] == "degraded")
            server.send_signal(signal.SIGCONT)
        await service.wait_until(lambda: service.health()["status"] == "ok")
        await load.wait_for(10)
    assert load.failures == []
    assert service.cache_servers() != []


@ON_RAY
async def test_a_cache_server_outlives_a_killed_replica(service: Service) -> None:
    (server,) = service.cache_servers()
    texts = new_texts(20)
    embed(service.url, texts)
    deployment = service.cache_deployment
    killed = service.replica_pids(deployment)
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    await service.wait_until(lambda: bool(set(service.replica_pids(deployment)) - set(killed)))
    await service.wait_until(lambda: service.running_replicas(deployment) >= 1)
    await service.wait_until(lambda: service.health()["status"] == "ok")
    assert [p.pid for p in service.cache_servers()] == [server.pid]


@ON_RAY
def test_cache_commands(service: Service, tmp_path: Path) -> None:
    service.wait_for_one_replica()
    texts = new_texts(600)
    file = tmp_path / "texts.jsonl"
    lines = [json.dumps({"text": text} if i % 2 else text) for i, text in enumerate(texts)]
    file.write_text("\n".join(lines) + "\n\n", "utf-8")
    output = service.run_python(*CLI, "warm", str(file))
    assert "600 texts in" in output
    assert "600 computed, 0 already cached" in output
    assert "0 computed, 600 already cached" in service.run_python(*CLI, "warm", str(file))
    # Ray may have started another replica of EmbedServer, which has another memory.
    tiers = ("l1",) if service.kind == SEPARATE else ("l1", "l2", "l1,l2")
    assert embed(service.url, texts)[1] in [f"hits=600; misses=0; tier={tier}" for tier in tiers]
    reports = cache_reports(service)
    assert max(r["memory"]["entries"] for r in reports[service.http_deployment]) >= 600
    shared = [r["shared"]["server"]["entries"] for r in reports[service.cache_deployment]]
    assert min(shared) >= 600
    assert service.cache_deployment in service.run_python(*CLI, "stats")
    purged = service.run_python(*CLI, "purge", "--model", "all-MiniLM-L6-v2")
    assert int(purged.split()[0]) >= 1200  # in memory and on the server
    assert embed(service.url, texts)[1] == "hits=0; misses=600"
