"""The order in which a roll-out replaces deployments: callers before those that they call."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

import ray
from ray import serve
from ray.serve._private.common import DeploymentStatus, ReplicaState
from ray.serve.schema import DeploymentDetails

from serve_app.deployments.replica_counter import fetch_details

logger = logging.getLogger(__name__)


async def wait_for_callers(
    callers: Sequence[str],
    *,
    deployment: str | None = None,
    fetch: Callable[[str], Awaitable[DeploymentDetails]] | None = None,
    timeout_s: float = 10.0,
    poll_s: float = 0.2,
) -> None:
    """Waits until the replicas that call this one have been replaced, if they are being replaced.

    Ray replaces the replicas of all deployments at once. As soon as a new replica has started, it
    stops a previous one, whose model callers of the previous application still need. New callers
    wait until this replica has started, so that no request fails. Returns at once if this replica
    replaces none, and after `timeout_s` in any case.

    Args:
        callers: deployments that call this one.
        deployment: the name of this one; None: that of the replica's context.
        fetch: returns a deployment's details; None: asks Ray Serve's controller.
        timeout_s: how long to wait.
        poll_s: pause between two questions.
    """
    if fetch is None:
        if not ray.is_initialized():
            return
        fetch = fetch_details
    own = deployment or serve.get_replica_context().deployment
    try:
        async with asyncio.timeout(timeout_s):
            present = await fetch(own)
            if not any(replica.state == ReplicaState.RUNNING for replica in present.replicas):
                return
            while True:
                if not await _are_updating(callers, fetch):
                    return
                await asyncio.sleep(poll_s)
    except TimeoutError:
        logger.warning("%s are being replaced for %g s; going on.", ", ".join(callers), timeout_s)
    except Exception as error:  # any of Ray's: a start must not depend on the controller
        logger.warning("Ray's controller does not answer: %s", error)


async def _are_updating(
    callers: Sequence[str], fetch: Callable[[str], Awaitable[DeploymentDetails]]
) -> bool:
    statuses = [(await fetch(caller)).status for caller in callers]
    return DeploymentStatus.UPDATING in statuses
