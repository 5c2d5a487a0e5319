"""Replicas come, go, hang and die; requests are answered."""

import asyncio
import os
import signal
import time
from pathlib import Path

import httpx2
import pytest

from tests.on_ray.conftest import Load, Service


def pinned_apart(service: Service) -> bool:
    """Whether each Embedder replica has threads on CPUs that no other replica's are pinned to."""
    everywhere = os.sched_getaffinity(0)
    pinned = []
    for pid in service.replica_pids("Embedder"):
        tasks = [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]
        pinned.append(
            {cpu for t in tasks if (cpus := os.sched_getaffinity(t)) != everywhere for cpu in cpus}
        )
    first, second = pinned
    return bool(first) and bool(second) and not first & second


async def test_scales_up_under_load_and_down_again_without_a_failed_request(
    service: Service, load: Load
) -> None:
    assert service.running("Embedder") == 1
    async with load.of(clients=16, texts=8):
        await service.until(lambda: service.running("Embedder") == 2)
        await load.more(200)
        assert len(os.sched_getaffinity(0)) < 2 or pinned_apart(service)
    async with load.of(clients=1, texts=1, pause_s=0.2):
        await service.until(lambda: service.running("Embedder") == 1)
        await load.more(5)
    assert load.failures == []


@pytest.mark.parametrize("deployment", ["Embedder", "CacheLookup"])
async def test_a_replica_killed_under_load_fails_no_request(
    service: Service, load: Load, deployment: str
) -> None:
    async with load.of(clients=4, texts=4):
        await load.more(20)
        before = service.replica_pids(deployment)
        assert before
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        await service.until(lambda: bool(set(service.replica_pids(deployment)) - set(before)))
        await load.more(40, timeout_s=100)
    assert load.failures == []


def test_health_does_not_lie_about_an_engine_that_hangs(service: Service) -> None:
    pids = service.replica_pids("Embedder")
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(1.5)  # longer than `health_max_age_s`
        reply = httpx2.get(f"{service.url}/health", timeout=10)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    assert reply.status_code == 503
    assert reply.json()["reason"] == "The engine returned no vector within 2 s."
    end = time.monotonic() + 60
    while httpx2.get(f"{service.url}/health", timeout=10).status_code != 200:
        assert time.monotonic() < end
        time.sleep(0.5)


async def test_a_burst_is_answered_or_refused_and_nothing_hangs(service: Service) -> None:
    async with httpx2.AsyncClient(
        base_url=service.url, timeout=60, limits=httpx2.Limits(max_connections=300)
    ) as client:

        async def ask(name: str, texts: int) -> httpx2.Response:
            body = {"input": [f"{name} {i} " + "a few words " * 10 for i in range(texts)]}
            return await client.post("/v1/embeddings", json=body)

        asked = [ask(f"burst {i}", 40 if i % 2 else 1) for i in range(300)]  # ten queues full
        replies = await asyncio.gather(*asked)
        statuses = {reply.status_code for reply in replies}
        assert {200, 429} <= statuses <= {200, 429, 504}
        for reply in replies:
            if reply.status_code == 429:
                assert 1 <= int(reply.headers["retry-after"]) <= 60
                assert reply.json()["error"]["code"] == "rate_limit_exceeded"
        assert (await ask("afterwards", 40)).status_code == 200


async def test_queries_do_not_wait_behind_bulk(service: Service, load: Load) -> None:
    async with load.of(clients=3, texts=200), httpx2.AsyncClient(base_url=service.url) as client:
        await load.more(3)
        for i in range(5):
            before = load.answered
            body = {"input": f"query {time.time_ns()} {i}"}
            reply = await client.post("/v1/embeddings", json=body, timeout=60)
            assert reply.status_code == 200
            assert load.answered - before <= 1  # at most the one that was about to be ready
    assert load.failures == []
