"""Ray's request router for deployments that run models: calls go where the fewest tokens wait."""

import asyncio
import logging
from collections.abc import Iterable
from typing import Any

from ray.serve.request_router import (
    FIFOMixin,
    PendingRequest,
    ReplicaID,
    RequestRouter,
    RunningReplica,
)

from serve_app.deployments.assigned_tokens import AssignedTokens
from serve_app.deployments.deployment_queues import DEPLOYMENT_QUEUES
from serve_app.deployments.movable_calls import MOVABLE_CALLS, groups_of

logger = logging.getLogger(__name__)

#: Key of `record_routing_stats`: the replica's speed in full batches.
SPEED = "tokens_per_s"


class TokenRouter(FIFOMixin, RequestRouter):
    """Sends a call to the replica on which it waits the shortest, by what this caller has sent.

    Ray's own router compares the numbers of requests on two replicas, as it last heard of them: a
    query counts like 2,048 documents, and a number is up to
    `RAY_SERVE_QUEUE_LENGTH_CACHE_TIMEOUT_S` old.

    Calls that wait on busy replicas move to new ones: see `choose_moves`.
    """

    def initialize_state(self, **kwargs: Any) -> None:
        """Starts with idle replicas."""
        self._assigned = AssignedTokens[ReplicaID]()
        DEPLOYMENT_QUEUES[self._deployment_id.name].follow(
            self._assigned, lambda: _speeds(self.curr_replicas.values())
        )

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Returns the replicas by ascending waiting time, each as a rank of its own."""
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True
        groups = groups_of(pending_request.args)
        # A call has groups of one lane: bulk groups travel alone.
        lane = groups[0].lane if groups else "interactive"
        replicas = {replica.replica_id: replica for replica in candidate_replicas}
        ranked = self._assigned.rank(_speeds(candidate_replicas), lane)
        if groups:
            call = pending_request.metadata.internal_request_id
            # At once: further calls are routed before this one is on its way.
            tokens = sum(group.estimated_tokens for group in groups)
            self._assigned.assign(call, ranked[0], lane, tokens)
            MOVABLE_CALLS.identify(groups, call)
            pending_request.future.add_done_callback(lambda f: self._on_routed(f, call))
        return [[replicas[id_]] for id_ in ranked]

    def _on_routed(self, future: asyncio.Future[Any], call: str) -> None:
        if future.cancelled():
            self._assigned.release(call)
        elif future.exception() is None:
            # The first replica may have been full, and another one got the call.
            self._assigned.move(call, future.result().replica_id)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Releases the tokens of a call, unless it has been sent to another replica since.

        A call whose replica dies or is full is routed again under the same id, and may be assigned
        before Ray reports the end of its first attempt.
        """
        self._assigned.release(internal_request_id, replica_id)

    def on_replica_actor_unavailable(self, replica_id: ReplicaID) -> None:
        """Prefers other replicas for a while: Ray could not reach this one."""
        self._assigned.avoid(replica_id)
        super().on_replica_actor_unavailable(replica_id)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Forgets what was sent to replicas that have gone, and gives new ones of what waits."""
        self._assigned.keep(replica.replica_id for replica in replicas)
        super().update_replicas(replicas)
        self._rebalance(_speeds(replicas))

    def _rebalance(self, speeds: dict[ReplicaID, float]) -> None:
        moved = 0
        for call in self._assigned.choose_moves(speeds):
            if MOVABLE_CALLS.move(call):
                # At once: it is sent again before Ray reports its end.
                self._assigned.release(call)
                moved += 1
        if moved:
            logger.info("Calls that start sooner on other replicas were moved: %d", moved)


def _speeds(replicas: Iterable[RunningReplica]) -> dict[ReplicaID, float]:
    return {replica.replica_id: replica.routing_stats.get(SPEED, 0.0) for replica in replicas}
