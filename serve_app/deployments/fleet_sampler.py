"""Samples of all replicas of the application: broadcast to each deployment → one sample."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import ray
from ray import serve
from ray.serve._private.common import ReplicaState
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import DeploymentDetails

from serve_app.autoscale.scaling_record import ScalingRecord
from serve_app.errors import Unavailable
from serve_app.live.fleet_sample import FleetSample, SilentReplica
from serve_app.live.replica_sample import ReplicaIdentity, ReplicaSample
from serve_app.live.replica_sampler import ReplicaSampler

logger = logging.getLogger(__name__)

#: A replica that doesn't answer in time is shown as one that doesn't respond.
_TIMEOUT_S = 1.0
_STARTING = (ReplicaState.STARTING, ReplicaState.UPDATING, ReplicaState.RECOVERING)


class FleetSampler:
    """Asks all replicas for a sample, of this application. Belongs to one event loop.

    A deployment that has scaled to zero isn't woken: a broadcast reaches running replicas only.
    """

    def __init__(
        self,
        own: ReplicaSampler,
        deployments: Sequence[str],
        scaling: Callable[[], Awaitable[list[ScalingRecord]]],
    ) -> None:
        """Creates a sampler that has asked nobody yet.

        Args:
            own: samples this process, which needs no call.
            deployments: names of the application's deployments.
            scaling: returns the latest decisions on the number of replicas.
        """
        self._own = own
        self._deployments = deployments
        self._scaling = scaling
        self._handles: dict[str, DeploymentHandle[Any]] = {}

    async def sample(self) -> FleetSample:
        """Returns what is known after about a second at most. Never raises Ray's errors."""
        scaling, details, answers = await asyncio.gather(
            self._read_scaling(),
            self._read_details(),
            asyncio.gather(*map(self._ask, self._deployments)),
        )
        replicas = {sample.identity: sample for samples in answers for sample in samples}
        replicas[self._own.identity] = self._own.sample()
        known = [(name, replica) for name, d in details.items() for replica in d.replicas]
        responding = {identity.replica for identity in replicas}
        silent = [
            SilentReplica(
                ReplicaIdentity(name, replica.replica_id, replica.node_ip or ""),
                replica.pid,
                _silence(replica.state),
            )
            for name, replica in known
            if replica.replica_id not in responding
        ]
        states = {replica.replica_id: replica.state for _, replica in known}
        return FleetSample(
            [*replicas.values()],
            silent,
            {
                name: details[name].target_num_replicas if name in details else None
                for name in self._deployments
            },
            scaling,
            states.get(self._own.identity.replica) is ReplicaState.STOPPING,
        )

    async def _ask(self, deployment: str) -> list[ReplicaSample]:
        """Returns the samples of the replicas that answer in time."""
        try:
            if deployment not in self._handles:  # cached, since each handle keeps a router alive
                application = serve.get_replica_context().app_name
                self._handles[deployment] = serve.get_deployment_handle(deployment, application)
            response = self._handles[deployment].broadcast("replica_sample")
            async with asyncio.timeout(_TIMEOUT_S):
                # Ray's public methods lose all results if one replica doesn't answer in time.
                results = await response._fetch_replica_results_async()
        except Exception as error:  # any of Ray's, also while there are no replicas
            logger.debug("%s can't be sampled: %r", deployment, error)
            return []
        answers = await asyncio.gather(*map(self._answer, results))
        return [answer for answer in answers if answer is not None]

    async def _answer(self, result: Any) -> ReplicaSample | None:
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                sample: ReplicaSample = await result.get_async()
                return sample
        except Exception:
            with contextlib.suppress(Exception):
                result.cancel()
            return None

    async def _read_scaling(self) -> Sequence[ScalingRecord]:
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                return await self._scaling()
        except (TimeoutError, Unavailable):
            return []

    async def _read_details(self) -> Mapping[str, DeploymentDetails]:
        """Returns Ray's state of each deployment; of none if the controller doesn't answer."""
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                # Ray's public API has only the status of everything that runs on the cluster.
                controller: Any = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
                application = serve.get_replica_context().app_name
                details = await asyncio.gather(
                    *(
                        controller.get_deployment_details.remote(application, name)
                        for name in self._deployments
                    )
                )
                return dict(zip(self._deployments, details, strict=True))
        except Exception:  # any of Ray's: it is on its way up or down
            return {}


def _silence(state: ReplicaState) -> Any:
    """Returns why a replica in this state sends no sample."""
    if state is ReplicaState.STOPPING:
        return "stopping"
    return "starting" if state in _STARTING else "no_response"
