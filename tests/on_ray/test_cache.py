"""The cache of a real service: exact, shared, and never in the way."""

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

from tests.on_ray.conftest import Load, Service

CLI = ("-m", "serve_app.command.main", "cache")


def new_texts(n: int) -> list[str]:
    return [f"{time.time_ns()} text {i}" for i in range(n)]


def ask(url: str, texts: Sequence[str], **fields: object) -> tuple[bytes, str]:
    """The vectors' bytes in base64, joined, and the header `x-cache`."""
    reply = httpx2.post(
        f"{url}/v1/embeddings",
        json={"input": list(texts), "encoding_format": "base64", **fields},
        timeout=120,
    )
    reply.raise_for_status()
    vectors = "".join(item["embedding"] for item in reply.json()["data"])
    return vectors.encode(), reply.headers["x-cache"]


def reports(service: Service) -> dict[str, Any]:
    found = json.loads(service.command(*CLI, "stats", "--json"))
    return {report["deployment"]: report for report in found}


async def test_only_new_texts_are_computed_and_each_once(service: Service) -> None:
    known, new = new_texts(30), new_texts(3)
    ask(service.url, known)
    _, cache = ask(service.url, [*known[:10], new[0], *known[10:], new[1]])
    assert cache == "hits=30; misses=2; tier=l1"
    before = await service.metric("embedserve_batch_texts", at_least=32)
    async with httpx2.AsyncClient(timeout=60) as client:
        replies = await asyncio.gather(
            *(
                client.post(f"{service.url}/v1/embeddings", json={"input": new[2]})
                for _ in range(50)
            )
        )
    assert len({reply.json()["data"][0]["embedding"][0] for reply in replies}) == 1
    assert ask(service.url, new_texts(1))[1] == "hits=0; misses=1"
    assert await service.metric("embedserve_batch_texts", at_least=before + 2) == before + 2


def test_use_cache_false_computes_and_keeps_nothing(service: Service) -> None:
    (text,) = new_texts(1)
    given = [ask(service.url, [text], use_cache=use) for use in (False, True, False, True)]
    miss, hit = "hits=0; misses=1", "hits=1; misses=0; tier=l1"
    assert [cache for _, cache in given] == [miss, miss, miss, hit]
    vectors = [np.frombuffer(b64decode(vector), np.float32) for vector, _ in given]
    assert np.abs(vectors[1] - vectors[2]).max() <= 2e-3  # what bf16 may differ by
    assert vectors[1].tobytes() == vectors[3].tobytes()


@pytest.mark.parametrize("fault", ["frozen", "killed"])
async def test_a_cache_server_that_fails_under_load_fails_no_request(
    service: Service, load: Load, fault: str
) -> None:
    (server,) = service.cache_servers()
    async with load.of(clients=4, texts=4):
        await load.more(10)
        server.send_signal(signal.SIGSTOP if fault == "frozen" else signal.SIGKILL)
        await load.more(40)
        if fault == "frozen":
            await service.until(lambda: service.health()["status"] == "degraded")
            server.send_signal(signal.SIGCONT)
        await service.until(lambda: service.health()["status"] == "ok")
        await load.more(10)
    assert load.failures == []
    assert service.cache_servers() != []


async def test_a_cache_server_outlives_a_killed_replica(service: Service) -> None:
    (server,) = service.cache_servers()
    texts = new_texts(20)
    ask(service.url, texts)
    for pid in service.replica_pids("CacheLookup"):
        os.kill(pid, signal.SIGKILL)
    await service.until(lambda: service.running("CacheLookup") == 1)
    await service.until(lambda: service.health()["status"] == "ok")
    assert [p.pid for p in service.cache_servers()] == [server.pid]


def test_the_commands(service: Service, tmp_path: Path) -> None:
    texts = new_texts(600)
    file = tmp_path / "texts.jsonl"
    lines = [json.dumps({"text": text} if i % 2 else text) for i, text in enumerate(texts)]
    file.write_text("\n".join(lines) + "\n\n", "utf-8")
    shown = service.command(*CLI, "warm", str(file))
    assert "600 texts in" in shown
    assert "600 computed, 0 known before" in shown
    assert "0 computed, 600 known before" in service.command(*CLI, "warm", str(file))
    assert ask(service.url, texts)[1] == "hits=600; misses=0; tier=l1"
    report = reports(service)
    assert report["Ingress"]["memory"]["entries"] >= 600
    assert report["CacheLookup"]["shared"]["server"]["entries"] >= 600
    assert "CacheLookup" in service.command(*CLI, "stats")
    forgotten = service.command(*CLI, "purge", "--model", "all-MiniLM-L6-v2")
    assert int(forgotten.split()[0]) >= 1800
    assert ask(service.url, texts)[1] == "hits=0; misses=600"
