"""Statistics over all Ingress replicas, and over the metrics agents of all nodes."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from serve_app.autoscale.publisher import read_record
from serve_app.autoscale.scaling_record import ScalingRecord
from serve_app.deployments.fleet_sampler import FleetSampler
from serve_app.deployments.metrics_agents import MetricsAgents
from serve_app.errors import Unavailable
from serve_app.live.fleet_sample import FleetSample
from serve_app.live.replica_sampler import ReplicaSampler
from serve_app.meter import Meter
from serve_app.service.prometheus_text import merge_pages
from serve_app.totals import Totals

logger = logging.getLogger(__name__)

_BROADCAST_TIMEOUT_S = 5.0
_READ_TIMEOUT_S = 2.0


class IngressStats:
    """`ReplicaStats` of all Ingress replicas of one application."""

    def __init__(self, meter: Meter, deployments: Sequence[str], sampler: ReplicaSampler) -> None:
        """Creates the statistics.

        Args:
            meter: counts of this replica, which are used if the broadcast fails.
            deployments: names of the application's deployments.
            sampler: samples this replica.
        """
        self._fleet = FleetSampler(sampler, deployments, self.scaling)
        self._meter = meter
        self._deployments = deployments
        self._agents = MetricsAgents()
        self._handle: DeploymentHandle[Any] | None = None

    async def totals(self) -> Totals:
        """Returns the sum over all replicas; leaves out those that don't respond."""
        responses = await self._broadcast("replica_totals")
        totals = Totals()
        for response in responses or [self._meter.totals()]:
            totals = totals.plus(response)
        return totals

    async def reset(self) -> None:
        """Resets the totals of all replicas to zero."""
        self._meter.reset()
        await self._broadcast("reset_totals")

    async def prometheus_text(self) -> str:
        """Returns the service's metrics of all nodes in Prometheus' text format.

        Ray's agents collect them every 10 s.

        Raises:
            Unavailable: see `MetricsAgents.pages`.
        """
        pages = await self._agents.pages()
        return await asyncio.to_thread(merge_pages, pages)

    async def scaling(self) -> list[ScalingRecord]:
        """Returns the decisions that the policies in Ray's controller have published.

        Raises:
            Unavailable: Ray doesn't respond.
        """
        application = serve.get_replica_context().app_name

        def read() -> list[ScalingRecord]:
            records = (read_record(application, name) for name in self._deployments)
            return [record for record in records if record is not None]

        try:
            return await asyncio.wait_for(asyncio.to_thread(read), _READ_TIMEOUT_S)
        except Exception as error:
            raise Unavailable(
                f"Ray's control service can't be read: {error!r}. Try again, or look into the log "
                "of Serve's controller."
            ) from None

    async def sample(self) -> FleetSample:
        """Returns the state of all replicas of the application."""
        return await self._fleet.sample()

    async def _broadcast(self, method: str) -> list[Totals]:
        if self._handle is None:  # cached, since each handle keeps a router alive
            context = serve.get_replica_context()
            self._handle = serve.get_deployment_handle(context.deployment, context.app_name)
        try:
            responses = await self._handle.broadcast(method).results_async(
                timeout_s=_BROADCAST_TIMEOUT_S, return_exceptions=True
            )
        except Exception as error:
            logger.warning("The broadcast to the Ingress replicas failed: %r", error)
            return []
        return [Totals(*response) for response in responses if isinstance(response, tuple)]
