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

from tests.on_ray.conftest import LoadGenerator, Service

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


def cache_reports(service: Service) -> dict[str, Any]:
    reports = json.loads(service.run_python(*CLI, "stats", "--json"))
    return {report["deployment"]: report for report in reports}


async def test_only_new_texts_are_computed_each_once(service: Service) -> None:
    known, new = new_texts(30), new_texts(3)
    embed(service.url, known)
    _, cache = embed(service.url, [*known[:10], new[0], *known[10:], new[1]])
    assert cache == "hits=30; misses=2; tier=l1"
    before = await service.counter("embedserve_batch_texts", at_least=32)
    async with httpx2.AsyncClient(timeout=60) as client:
        replies = await asyncio.gather(
            *(
                client.post(f"{service.url}/v1/embeddings", json={"input": new[2]})
                for _ in range(50)
            )
        )
    assert len({reply.json()["data"][0]["embedding"][0] for reply in replies}) == 1
    assert embed(service.url, new_texts(1))[1] == "hits=0; misses=1"
    assert await service.counter("embedserve_batch_texts", at_least=before + 2) == before + 2


def test_use_cache_false_neither_reads_nor_writes_the_cache(service: Service) -> None:
    (text,) = new_texts(1)
    replies = [embed(service.url, [text], use_cache=use) for use in (False, True, False, True)]
    miss, hit = "hits=0; misses=1", "hits=1; misses=0; tier=l1"
    assert [cache for _, cache in replies] == [miss, miss, miss, hit]
    vectors = [np.frombuffer(b64decode(vector), np.float32) for vector, _ in replies]
    assert np.abs(vectors[1] - vectors[2]).max() <= 2e-3  # the bound between batches at bf16
    assert vectors[1].tobytes() == vectors[3].tobytes()


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


async def test_a_cache_server_outlives_a_killed_replica(service: Service) -> None:
    (server,) = service.cache_servers()
    texts = new_texts(20)
    embed(service.url, texts)
    for pid in service.replica_pids("CacheLookup"):
        os.kill(pid, signal.SIGKILL)
    await service.wait_until(lambda: service.running_replicas("CacheLookup") == 1)
    await service.wait_until(lambda: service.health()["status"] == "ok")
    assert [p.pid for p in service.cache_servers()] == [server.pid]


def test_cache_commands(service: Service, tmp_path: Path) -> None:
    texts = new_texts(600)
    file = tmp_path / "texts.jsonl"
    lines = [json.dumps({"text": text} if i % 2 else text) for i, text in enumerate(texts)]
    file.write_text("\n".join(lines) + "\n\n", "utf-8")
    output = service.run_python(*CLI, "warm", str(file))
    assert "600 texts in" in output
    assert "600 computed, 0 already cached" in output
    assert "0 computed, 600 already cached" in service.run_python(*CLI, "warm", str(file))
    assert embed(service.url, texts)[1] == "hits=600; misses=0; tier=l1"
    report = cache_reports(service)
    assert report["Ingress"]["memory"]["entries"] >= 600
    assert report["CacheLookup"]["shared"]["server"]["entries"] >= 600
    assert "CacheLookup" in service.run_python(*CLI, "stats")
    purged = service.run_python(*CLI, "purge", "--model", "all-MiniLM-L6-v2")
    assert int(purged.split()[0]) >= 1800
    assert embed(service.url, texts)[1] == "hits=0; misses=600"
