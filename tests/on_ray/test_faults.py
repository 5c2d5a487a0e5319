"""Requests succeed while replicas start, stop, hang and die."""

import asyncio
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest

from serve_app.engines.cpu_quota import read_cpu_quota
from tests.on_ray.conftest import EVERYWHERE, ON_RAY, LoadGenerator, Service


def have_disjoint_cpus(service: Service) -> bool:
    """Returns whether the replicas with engines pin threads to disjoint sets of CPUs."""
    pids = service.replica_pids(service.engine_deployment)
    pinned = [cpus for pid in pids if (cpus := pinned_cpus(pid))]  # none while a replica starts
    return len(pinned) >= 2 and sum(map(len, pinned)) == len(set().union(*pinned))


def pinned_cpus(pid: int) -> set[int]:
    """Returns the CPUs to which a process pins threads."""
    all_cpus = os.sched_getaffinity(0)
    pinned = set[int]()
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(ProcessLookupError):  # the thread has ended
            cpus = os.sched_getaffinity(int(task.name))
            pinned |= cpus if cpus != all_cpus else set()
    return pinned


@pytest.mark.exclusive
@ON_RAY
async def test_autoscaling_up_and_down_fails_no_request(
    service: Service, load: LoadGenerator
) -> None:
    deployment = service.engine_deployment
    await asyncio.to_thread(service.wait_for_one_replica)
    async with load.run(clients=16, texts=8):
        await service.wait_until(lambda: service.running_replicas(deployment) >= 2)
        await load.wait_for(200)
        cpu_count = len(os.sched_getaffinity(0))
        is_pinned = cpu_count >= 2 and read_cpu_quota() >= cpu_count
        assert not is_pinned or have_disjoint_cpus(service)
    async with load.run(clients=1, texts=1, pause_s=0.2):
        await service.wait_until(lambda: service.running_replicas(deployment) == 1)
        await load.wait_for(5)
    assert load.failures == []


@pytest.mark.parametrize("deployment", ["Embedder", "CacheLookup"])
async def test_a_replica_killed_under_load_fails_no_request(
    service: Service, load: LoadGenerator, deployment: str
) -> None:
    async with load.run(clients=4, texts=4):
        await load.wait_for(20)
        before = service.replica_pids(deployment)
        assert before
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        await service.wait_until(lambda: bool(set(service.replica_pids(deployment)) - set(before)))
        await load.wait_for(40, timeout_s=100)
    assert load.failures == []


@ON_RAY
async def test_requests_of_a_killed_http_replica_are_sent_again(
    service: Service, load: LoadGenerator
) -> None:
    async with load.run(clients=4, texts=4):
        await load.wait_for(20)
        before = service.replica_pids(service.http_deployment)
        assert before
        engines = service.replica_pids(service.engine_deployment)
        for pid in engines:
            os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(0.5)  # until no reply is being sent: half a reply can't be repeated
            for pid in before:  # all, so that requests of each client are sent again
                os.kill(pid, signal.SIGKILL)
        finally:
            for pid in {*engines} - {*before}:
                os.kill(pid, signal.SIGCONT)
        await service.wait_until(
            lambda: bool({*service.replica_pids(service.http_deployment)} - {*before}),
            timeout_s=60,
        )
        await load.wait_for(40, timeout_s=100)
    assert load.failures == []


def test_health_reports_an_engine_that_hangs(service: Service) -> None:
    service.wait_for_one_replica()
    pids = service.replica_pids("Embedder")
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(1.5)  # longer than `health_max_age_s`
        reply = httpx2.get(f"{service.url}/health", timeout=30)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    assert reply.status_code == 503
    assert reply.json()["reason"] == "The engine returned no vector within 2 s."
    deadline = time.monotonic() + 60
    while httpx2.get(f"{service.url}/health", timeout=30).status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.5)


@pytest.mark.exclusive
@EVERYWHERE
async def test_each_request_of_a_burst_is_served_or_rejected(service: Service) -> None:
    async with httpx2.AsyncClient(
        base_url=service.url, timeout=60, limits=httpx2.Limits(max_connections=300)
    ) as client:

        async def embed(name: str, texts: int) -> httpx2.Response:
            body = {"input": [f"{name} {i} " + "a few words " * 10 for i in range(texts)]}
            return await client.post("/v1/embeddings", json=body)

        # Ten times the queue's limit.
        requests = [embed(f"burst {i}", 40 if i % 2 else 1) for i in range(300)]
        replies = await asyncio.gather(*requests)
        statuses = {reply.status_code for reply in replies}
        assert {200, 429} <= statuses <= {200, 429, 504}
        for reply in replies:
            if reply.status_code == 429:
                assert 1 <= int(reply.headers["retry-after"]) <= 60
                assert reply.json()["error"]["code"] == "rate_limit_exceeded"
        assert (await embed("afterwards", 40)).status_code == 200


async def test_queries_do_not_wait_behind_bulk(service: Service) -> None:
    await asyncio.to_thread(service.wait_for_one_replica)
    async with httpx2.AsyncClient(base_url=service.url, timeout=60) as client:

        async def embed(texts: list[str]) -> httpx2.Response:
            return await client.post("/v1/embeddings", json={"input": texts})

        name = f"bulk {time.time_ns()}"
        pids = service.replica_pids("Embedder")
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            bulk = asyncio.create_task(embed([f"{name} {i}" + " word" * 60 for i in range(350)]))
            await asyncio.sleep(0.5)  # so that the query arrives after it
            query = asyncio.create_task(embed([f"query after {name}"]))
            await asyncio.sleep(0.2)
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        first, _ = await asyncio.wait([bulk, query], return_when=asyncio.FIRST_COMPLETED)
        assert first == {query}
        assert [(await bulk).status_code, (await query).status_code] == [200, 200]
