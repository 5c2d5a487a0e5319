from typing import Any, cast

import pytest
from ray.serve._private.common import DeploymentStatus, DeploymentStatusTrigger, ReplicaState
from ray.serve.schema import DeploymentDetails, ReplicaDetails

from serve_app.deployments.replica_counter import ReplicaCounter
from serve_app.types import ReplicaCount


def details(
    *states: str, min_replicas: int | None = 0, status: str = "HEALTHY", message: str = ""
) -> DeploymentDetails:
    scaling = None if min_replicas is None else {"min_replicas": min_replicas, "max_replicas": 4}
    replicas = [
        ReplicaDetails(replica_id=str(i), state=ReplicaState(state), start_time_s=1.0)
        for i, state in enumerate(states)
    ]
    config: dict[str, Any] = {"name": "Embedder"}
    config |= {"num_replicas": 1} if scaling is None else {"autoscaling_config": scaling}
    return DeploymentDetails(
        name="Embedder",
        status=DeploymentStatus(status),
        status_trigger=DeploymentStatusTrigger.UNSPECIFIED,
        message=message,
        deployment_config=cast(Any, config),
        target_num_replicas=1,
        required_resources={},
        replicas=replicas,
    )


@pytest.mark.parametrize(
    ("found", "count"),
    [
        (details(), ReplicaCount(0, may_be_zero=True)),
        (details("STARTING", status="UPSCALING"), ReplicaCount(0, may_be_zero=True)),
        (details("RUNNING", "STOPPING"), ReplicaCount(1, may_be_zero=True)),
        (details("RUNNING", min_replicas=1), ReplicaCount(1)),
        (details("RUNNING", min_replicas=None), ReplicaCount(1)),
        (details(status="DEPLOY_FAILED", message="No CPU."), ReplicaCount(0, True, "No CPU.")),
    ],
)
async def test_it_counts_the_replicas_that_run(
    found: DeploymentDetails, count: ReplicaCount
) -> None:
    async def fetch(name: str) -> DeploymentDetails:
        assert name == "Embedder"
        return found

    assert await ReplicaCounter("Embedder", fetch)() == count


def test_only_a_deployment_without_replicas_that_can_start_is_asleep() -> None:
    assert ReplicaCount(0, may_be_zero=True).is_asleep
    assert not ReplicaCount(1, may_be_zero=True).is_asleep
    assert not ReplicaCount(0).is_asleep
    assert not ReplicaCount(0, may_be_zero=True, failure="No CPU.").is_asleep


async def test_without_a_controller_the_count_is_unknown() -> None:
    async def fetch(name: str) -> DeploymentDetails:
        raise ValueError("no such actor")

    assert await ReplicaCounter("Embedder", fetch)() is None


async def test_many_readers_ask_the_controller_once_a_second() -> None:
    now_s, calls = 0.0, 0

    async def fetch(name: str) -> DeploymentDetails:
        nonlocal calls
        calls += 1
        return details()

    counter = ReplicaCounter("Embedder", fetch, clock=lambda: now_s)
    for _ in range(10):
        await counter()
    assert calls == 1
    now_s += 2
    await counter()
    assert calls == 2
