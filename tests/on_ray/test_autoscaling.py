"""Autoscaling on Ray, with replicas whose speed is a setting."""

import asyncio
import random
import resource
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import httpx2
import pytest

from serve_app.autoscale.scaling_record import ScalingRecord
from tests.on_ray.conftest import COLOCATED, SEPARATE, Service, running_service, service_config

MODEL = "hashing"
#: Seconds of a batch, and of each token in it.
BATCH_COST = {"fixed_s": 0.01, "token_s": 0.001}
TEXT = "word " * 50
#: About the requests per second that one replica can compute.
CAPACITY = 18.0
POLICY = {"bulk_drain_target_s": 5, "downscale_delay_s": 2, "downscale_interval_s": 0.5}


@pytest.fixture(scope="module", params=[SEPARATE, COLOCATED])
def scaling_service(request: pytest.FixtureRequest) -> Iterator[Service]:
    with tempfile.TemporaryDirectory(prefix="es-", dir="/tmp") as scratch:
        config = service_config(request.param, scratch)
        application = config["applications"][0]
        application["args"] |= {
            "model": {"name": MODEL, "source": "hashing:16", "batch_cost": BATCH_COST},
            "cache": {"url": "none"},
        }
        for deployment in application["deployments"]:
            if "autoscaling_config" in deployment:
                deployment["ray_actor_options"] = {"num_cpus": 0.1}
                deployment["user_config"] |= {"batch_target_s": 0.2, "max_queued_tokens": 262_144}
                deployment["autoscaling_config"]["max_replicas"] = 5
                deployment["autoscaling_config"]["policy"]["policy_kwargs"] = POLICY
        with running_service(request.param, config, scratch) as service:
            yield service


class Clients:
    """Sends requests at a rate, without waiting for replies, and watches the decisions."""

    def __init__(self, service: Service) -> None:
        self._url = service.url
        self._random = random.Random(0)
        self.rate = 0.0  #: requests per second
        self.succeeded = 0
        self.failures: list[str] = []
        self.records: list[ScalingRecord] = []  #: each decision once

    @asynccontextmanager
    async def run(self, rate: float = 0.0) -> AsyncIterator[None]:
        """Runs until the end of the block, and until the last reply."""
        self.rate = rate
        async with httpx2.AsyncClient(base_url=self._url, timeout=60) as http:
            tasks = [asyncio.create_task(self._send(http)), asyncio.create_task(self._watch(http))]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        assert self.failures == []

    async def wait_until(self, condition: Callable[[ScalingRecord], bool]) -> ScalingRecord:
        """Waits for a decision."""
        async with asyncio.timeout(40):
            while not (self.records and condition(self.records[-1])):
                await asyncio.sleep(0.1)
        return self.records[-1]

    async def post(self, http: httpx2.AsyncClient, texts: list[str]) -> None:
        reply = await http.post("/v1/embeddings", json={"model": MODEL, "input": texts})
        if reply.status_code == 200:
            self.succeeded += 1
        else:
            self.failures.append(reply.text)

    async def _send(self, http: httpx2.AsyncClient) -> None:
        async with asyncio.TaskGroup() as group:
            try:
                while True:
                    rate = max(self.rate, 0.1)
                    await asyncio.sleep(self._random.expovariate(rate))
                    if self.rate:
                        group.create_task(self.post(http, [f"{time.time_ns()} {TEXT}"]))
            except asyncio.CancelledError:
                pass  # the replies are awaited

    async def _watch(self, http: httpx2.AsyncClient) -> None:
        while True:
            reply = await http.get("/autoscaling")
            (record,) = reply.json()["deployments"] or [None]
            if record and (not self.records or record["unix"] > self.records[-1]["unix"]):
                self.records.append(record)
            await asyncio.sleep(0.2)


async def test_noise_and_idle_connections_change_nothing(scaling_service: Service) -> None:
    clients = Clients(scaling_service)
    host, port = scaling_service.url.removeprefix("http://").split(":")
    with ExitStack() as connections:
        async with clients.run(0.5 * CAPACITY):
            await clients.wait_until(lambda record: record["load"]["capacity_tokens_per_s"] > 0)
            for _ in range(idle_connections()):
                connections.enter_context(socket.create_connection((host, int(port)), 10))
            await asyncio.sleep(15)
    assert {record["target"] for record in clients.records} == {1}
    assert clients.records[-1]["changes"] == []
    assert clients.succeeded > 80


def idle_connections() -> int:
    """Returns 2,048, or fewer if the process may not open as many files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))
    return min(2048, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)


async def test_a_step_adds_replicas_within_seconds_and_they_leave_without_a_failure(
    scaling_service: Service,
) -> None:
    clients = Clients(scaling_service)
    async with clients.run(0.4 * CAPACITY):
        steady = await clients.wait_until(lambda record: record["load"]["served_tokens_per_s"] > 0)
        await asyncio.sleep(3)
        offered = max(offered_tokens(record) for record in clients.records)
        assert steady["target"] == 1
        clients.rate = 3 * CAPACITY
        await clients.wait_until(lambda record: record["target"] >= 3 and record["running"] > 1)
        clients.rate = 0.3 * CAPACITY
        await clients.wait_until(lambda record: record["running"] == record["target"] == 1)
    changes = [c for c in clients.records[-1]["changes"] if c["unix"] > steady["unix"]]
    first = min(changes, key=lambda change: change["unix"])
    shown = next(r for r in clients.records if offered_tokens(r) > 1.5 * offered)
    assert first["after"] > first["before"] == 1
    assert first["unix"] - shown["unix"] <= 3
    assert all(change["before"] - change["after"] <= 1 for change in changes)
    assert all(change["reason"] for change in changes)


def offered_tokens(record: ScalingRecord) -> float:
    return record["load"]["offered_interactive_tokens_per_s"]


@pytest.mark.parametrize("scaling_service", [SEPARATE], indirect=True)
async def test_new_replicas_compute_texts_that_came_before_them(scaling_service: Service) -> None:
    clients = Clients(scaling_service)
    name = "embedserve_batch_size_texts_sum"
    async with clients.run(), httpx2.AsyncClient(base_url=scaling_service.url, timeout=150) as http:
        await clients.wait_until(lambda record: record["running"] == 1)
        await clients.post(http, ["the first text"])
        await scaling_service.counter(name, at_least=1)
        before = set(scaling_service.counts(name))
        # CacheLookup sends each of these requests at once, and keeps none of them back. One replica
        # would take 80 s for them, longer than others take to start.
        requests = [[f"{time.time_ns()} {i} {TEXT}" for i in range(40)] for _ in range(36)]
        replies = asyncio.gather(*(clients.post(http, texts) for texts in requests))

        def are_moved() -> bool:
            counts = scaling_service.counts(name)
            return sum(count for replica, count in counts.items() if replica not in before) >= 80

        await scaling_service.wait_until(are_moved)
        await replies
        await clients.wait_until(lambda record: record["running"] == record["target"] == 1)
    assert clients.succeeded == 37


@pytest.mark.parametrize("scaling_service", [SEPARATE], indirect=True)
async def test_a_text_does_not_wait_for_the_others_of_its_call(scaling_service: Service) -> None:
    async def answered_s(text: str) -> float:
        body = {"model": MODEL, "input": f"{time.time_ns()} {text}"}
        assert (await http.post("/v1/embeddings", json=body)).status_code == 200
        return time.monotonic()

    async with httpx2.AsyncClient(base_url=scaling_service.url, timeout=60) as http:
        # As many calls as may be in flight, of half a second each. What comes leaves in one call.
        calls = [asyncio.create_task(answered_s(f"{i} {10 * TEXT}")) for i in range(4)]
        await asyncio.sleep(0.1)
        short = asyncio.create_task(answered_s("short"))
        await asyncio.sleep(0.05)
        long = [asyncio.create_task(answered_s(f"{i} {10 * TEXT}")) for i in range(6)]
        await asyncio.gather(*calls)
        assert max(await asyncio.gather(*long)) - await short > 1, "the long ones take 3 s"


async def test_one_request_of_many_documents_adds_replicas(scaling_service: Service) -> None:
    clients = Clients(scaling_service)
    documents = [f"{time.time_ns()} {i} some words" for i in range(2048)]
    async with clients.run(), httpx2.AsyncClient(base_url=scaling_service.url, timeout=60) as http:
        # A replica that is about to leave could get the request, and its queue no longer counts.
        await clients.wait_until(lambda record: record["running"] == record["target"] == 1)
        request = asyncio.create_task(clients.post(http, documents))
        record = await clients.wait_until(lambda record: record["target"] > 1)
        assert record["decided_by"] == "bulk"
        await request
        await clients.wait_until(lambda record: record["running"] == record["target"] == 1)
    assert clients.succeeded == 1


@pytest.mark.parametrize("scaling_service", [SEPARATE], indirect=True)
async def test_a_new_controller_keeps_the_replicas_and_the_history(
    scaling_service: Service,
) -> None:
    def changes(record: ScalingRecord) -> list[Any]:
        return [(change["unix"], change["after"]) for change in record["changes"]]

    clients = Clients(scaling_service)
    async with clients.run(0.3 * CAPACITY):
        before = await clients.wait_until(lambda record: record["running"] == 1)
        await asyncio.to_thread(
            scaling_service.run_driver,
            "import ray; ray.init(); ray.kill(ray.get_actor('SERVE_CONTROLLER_ACTOR', 'serve'), "
            "no_restart=False)",
        )
        killed_s = time.time()
        after = await clients.wait_until(lambda record: record["unix"] > killed_s + 1)
    assert after["target"] == 1
    assert changes(after) == changes(before) != []
