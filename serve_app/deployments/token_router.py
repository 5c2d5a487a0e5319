"""Ray's request router for deployments that run models: calls go where the fewest tokens wait."""

import asyncio
from collections.abc import Sequence
from typing import Any

from ray.serve.request_router import (
    FIFOMixin,
    PendingRequest,
    ReplicaID,
    RequestRouter,
    RunningReplica,
)

from serve_app.deployments.assigned_tokens import AssignedTokens
from serve_app.inputs import estimated_tokens
from serve_app.types import Lane, TextGroup

#: Key of `record_routing_stats`: the replica's speed in full batches.
SPEED = "tokens_per_s"


class TokenRouter(FIFOMixin, RequestRouter):
    """Sends a call to the replica on which it waits the shortest, by what this caller has sent.

    Ray's own router compares the numbers of requests on two replicas, as it last heard of them: a
    query counts like 2,048 documents, and a number is up to
    `RAY_SERVE_QUEUE_LENGTH_CACHE_TIMEOUT_S` old.
    """

    def initialize_state(self, **kwargs: Any) -> None:
        """Starts with idle replicas."""
        self._assigned = AssignedTokens[ReplicaID]()

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Returns the replicas by ascending waiting time, each as a rank of its own."""
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True
        lane, tokens = _work(pending_request.args)
        replicas = {replica.replica_id: replica for replica in candidate_replicas}
        speeds: dict[ReplicaID, float] = {
            id_: r.routing_stats.get(SPEED, 0.0) for id_, r in replicas.items()
        }
        ranked = self._assigned.rank(speeds, lane)
        if tokens:
            call = pending_request.metadata.internal_request_id
            # At once: further calls are routed before this one is on its way.
            self._assigned.assign(call, ranked[0], lane, tokens)
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
        """Forgets what was sent to replicas that have gone."""
        self._assigned.keep(replica.replica_id for replica in replicas)
        super().update_replicas(replicas)


def _work(args: Sequence[Any]) -> tuple[Lane, int]:
    """Returns the lane of a call and its tokens; 0 if it runs no model."""
    candidates = args[1] if len(args) > 1 and isinstance(args[1], tuple) else ()
    groups = [group for group in candidates if isinstance(group, TextGroup)]
    if not groups:
        return "interactive", 0
    # A call has groups of one lane: bulk groups travel alone.
    return groups[0].lane, sum(estimated_tokens(i) + 1 for group in groups for i in group.texts)
