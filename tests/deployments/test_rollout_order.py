"""A new replica takes over once those that call it have been replaced."""

from collections.abc import Iterator, Sequence
from typing import Any, cast

from ray.serve._private.common import DeploymentStatus, DeploymentStatusTrigger, ReplicaState
from ray.serve.schema import DeploymentDetails, ReplicaDetails

from serve_app.deployments.rollout_order import wait_for_callers


class FakeServe:
    """Ray Serve's controller. The statuses of a deployment follow each other; the last remains."""

    def __init__(self, own: str, **callers: Sequence[str]) -> None:
        self._own = own
        self._callers = {name: iter(statuses) for name, statuses in callers.items()}
        self.asked: list[str] = []

    async def fetch(self, name: str) -> DeploymentDetails:
        self.asked.append(name)
        if name == "Embedder":
            return details("UPDATING", self._own)
        return details(_next(self._callers[name]), "RUNNING")


def _next(statuses: Iterator[str]) -> str:
    status = next(statuses)
    if status == "GONE":
        raise RuntimeError("The controller restarts.")
    return status


def details(status: str, replica: str) -> DeploymentDetails:
    replicas = [
        ReplicaDetails(replica_id=state, state=ReplicaState(state), start_time_s=1.0)
        for state in (replica, "STARTING")
    ]
    return DeploymentDetails(
        name="x",
        status=DeploymentStatus(status),
        status_trigger=DeploymentStatusTrigger.UNSPECIFIED,
        message="",
        deployment_config=cast(Any, {"name": "x", "num_replicas": 1}),
        target_num_replicas=1,
        required_resources={},
        replicas=replicas,
    )


async def wait(serve: FakeServe, *callers: str, timeout_s: float = 30) -> list[str]:
    await wait_for_callers(
        callers, deployment="Embedder", fetch=serve.fetch, timeout_s=timeout_s, poll_s=0
    )
    return serve.asked[1:]


async def test_it_waits_until_all_callers_have_been_replaced() -> None:
    serve = FakeServe(
        "RUNNING",
        Ingress=["UPDATING", "HEALTHY", "HEALTHY"],
        CacheLookup=["UPDATING"] * 2 + ["HEALTHY"],
    )
    assert await wait(serve, "Ingress", "CacheLookup") == ["Ingress", "CacheLookup"] * 3


async def test_it_does_not_wait_if_no_replica_runs_that_it_could_replace() -> None:
    assert await wait(FakeServe("STOPPING", Ingress=[]), "Ingress") == []


async def test_it_does_not_wait_for_callers_that_stay_or_fail() -> None:
    assert await wait(FakeServe("RUNNING", Ingress=["HEALTHY"]), "Ingress") == ["Ingress"]
    assert await wait(FakeServe("RUNNING", Ingress=["DEPLOY_FAILED"]), "Ingress") == ["Ingress"]


async def test_it_does_not_wait_for_ever() -> None:
    assert "Ingress" in await wait(
        FakeServe("RUNNING", Ingress=["UPDATING"] * 1_000_000), "Ingress", timeout_s=0.05
    )


async def test_it_does_not_depend_on_the_controller() -> None:
    assert await wait(FakeServe("RUNNING", Ingress=["UPDATING", "GONE"]), "Ingress") == [
        "Ingress",
        "Ingress",
    ]


async def test_a_replica_without_ray_does_not_wait() -> None:
    await wait_for_callers(("Ingress",), deployment="Embedder")
