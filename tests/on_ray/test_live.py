"""`GET /live` of a running service: which replicas there are, and rates that add up."""

import json
from collections.abc import Iterator
from typing import Any

import httpx2

from tests.on_ray.conftest import EVERYWHERE, STANDALONE, Service

REQUESTS = 20
#: The clocks of the replicas and of the snapshots differ by the time of a call.
TOLERANCE = 0.2
MAX_SNAPSHOTS = 30


def snapshots(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if line.startswith("data: "):
            yield json.loads(line[6:])


@EVERYWHERE
def test_a_stream_counts_each_request_once_and_lists_the_replicas(service: Service) -> None:
    service.wait_for_one_replica()
    deployments = {
        service.http_deployment,
        service.cache_deployment,
        service.engine_deployment,
    }
    if service.kind == STANDALONE:
        deployments = {"standalone"}
    url, counted = f"{service.url}/live?interval_s=0.5", 0.0
    with httpx2.Client(timeout=30) as client, client.stream("GET", url) as response:
        stream = snapshots(response.iter_lines())
        before = next(stream)
        assert before["topology"] == service.kind
        assert {row["name"] for row in before["deployments"]} == deployments
        before = next(stream)  # from here on rates are known
        for number in range(REQUESTS):
            body = {"input": f"a text of the live view, {number}"}
            assert client.post(f"{service.url}/v1/embeddings", json=body).status_code == 200
        for _ in range(MAX_SNAPSHOTS):
            after = next(stream)
            counted += after["requests"]["per_s"] * (after["unix"] - before["unix"])
            before = after
            if counted >= REQUESTS * (1 - TOLERANCE):
                break
        last = next(stream)
        counted += last["requests"]["per_s"] * (last["unix"] - before["unix"])
    assert REQUESTS * (1 - TOLERANCE) <= counted <= REQUESTS * (1 + TOLERANCE)
    running = [row["deployment"] for row in last["replicas"] if row["state"] == "running"]
    assert set(running) == deployments
    assert {row["name"]: row["replicas"] for row in last["deployments"]} == {
        name: running.count(name) for name in deployments
    }


@EVERYWHERE
def test_one_snapshot_has_rates(service: Service) -> None:
    snapshot = httpx2.get(f"{service.url}/live?once=true&interval_s=0.5", timeout=30).json()
    assert snapshot["requests"]["per_s"] is not None
    assert snapshot["requests"]["errors_per_s"] == 0
    assert [model["state"] for model in snapshot["models"]] == ["ready"]
    assert snapshot["replicas"]
