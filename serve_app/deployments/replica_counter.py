"""Counts the replicas of another deployment, without a call to them, which would start one."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import ray
from ray import serve
from ray.serve._private.common import DeploymentStatus, ReplicaState
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
from ray.serve.schema import DeploymentDetails

from serve_app.types import ReplicaCount

#: While the controller restarts, it answers nothing.
_TIMEOUT_S = 1.0
_MAX_AGE_S = 1.0
_FAILED = (DeploymentStatus.UNHEALTHY, DeploymentStatus.DEPLOY_FAILED)


class ReplicaCounter:
    """The number of replicas of one deployment. Belongs to one event loop."""

    def __init__(
        self,
        deployment: str,
        fetch: Callable[[str], Awaitable[DeploymentDetails]] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Creates a counter.

        Args:
            deployment: its name.
            fetch: returns the deployment's details; None: asks Ray Serve's controller.
            clock: returns monotonic seconds.
        """
        self._deployment = deployment
        self._fetch = fetch or fetch_details
        self._clock = clock
        self._count: ReplicaCount | None = None
        self._counted_s: float | None = None
        self._lock = asyncio.Lock()

    async def __call__(self) -> ReplicaCount | None:
        """Returns the count, at most a second old; None: the controller doesn't answer."""
        async with self._lock:
            if self._counted_s is None or self._clock() - self._counted_s > _MAX_AGE_S:
                try:
                    async with asyncio.timeout(_TIMEOUT_S):
                        self._count = _count(await self._fetch(self._deployment))
                except Exception:  # any of Ray's: it is on its way up or down
                    self._count = None
                self._counted_s = self._clock()
            return self._count


def _count(details: DeploymentDetails) -> ReplicaCount:
    scaling = details.deployment_config.autoscaling_config
    minimum = scaling.get("min_replicas") if isinstance(scaling, dict) else None
    running = [r for r in details.replicas if r.state == ReplicaState.RUNNING]
    return ReplicaCount(
        running=len(running),
        may_be_zero=minimum == 0,
        failure=(details.message or "Ray can't start it.") if details.status in _FAILED else None,
    )


async def fetch_details(deployment: str) -> DeploymentDetails:
    """Returns what Ray Serve's controller knows of a deployment of this application."""
    # Ray's public API has only the status of everything that runs on the cluster.
    controller: Any = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    application = serve.get_replica_context().app_name
    details: DeploymentDetails = await controller.get_deployment_details.remote(
        application, deployment
    )
    return details
