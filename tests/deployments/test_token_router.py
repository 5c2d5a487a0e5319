"""Ray's hooks of the router: what is chosen, assigned and released."""

import asyncio
from typing import Any, cast

from ray.serve._private.common import (
    DeploymentHandleSource,
    DeploymentID,
    ReplicaID,
    RequestMetadata,
)
from ray.serve.config import RequestRouterConfig
from ray.serve.request_router import PendingRequest, RunningReplica

from serve_app.deployments.deployment_queues import DEPLOYMENT_QUEUES
from serve_app.deployments.movable_calls import MOVABLE_CALLS
from serve_app.deployments.token_router import SPEED, TokenRouter
from serve_app.types import Lane, TextGroup

DEPLOYMENT = DeploymentID("Embedder", "embedserve")


class FakeReplica:
    """What the router reads of a replica."""

    def __init__(self, name: str, tokens_per_s: float = 100.0) -> None:
        self.replica_id = ReplicaID(name, DEPLOYMENT)
        self.routing_stats = {SPEED: tokens_per_s}

    async def get_queue_len(self, *, deadline_s: float) -> int:
        return 0


class Routing:
    """A router with replicas."""

    def __init__(self, **tokens_per_s: float) -> None:
        # As Ray gets it: unpickled, after it was pickled with its module.
        config = RequestRouterConfig(request_router_class=TokenRouter)  # type: ignore[arg-type]
        router_class = cast(type[TokenRouter], config.get_request_router_class())
        self.router = router_class(DEPLOYMENT, DeploymentHandleSource.REPLICA)
        self.router.initialize_state()
        self.replicas = [FakeReplica(name, speed) for name, speed in tokens_per_s.items()]
        self._requests = 0

    async def route(self, *args: Any) -> tuple[str, PendingRequest]:
        """Returns the replica that a call goes to, and the call."""
        self._requests += 1
        metadata = RequestMetadata(str(self._requests), str(self._requests))
        request = PendingRequest([*args], {}, metadata)
        ranks = await self.router.choose_replicas(
            cast(list[RunningReplica], self.replicas), request
        )
        assert sorted(r.replica_id.unique_id for rank in ranks for r in rank) == sorted(
            replica.replica_id.unique_id for replica in self.replicas
        )
        return ranks[0][0].replica_id.unique_id, request

    async def run(self, *texts: str, lane: Lane = "interactive") -> tuple[str, PendingRequest]:
        return await self.route("engine", (TextGroup(texts, lane=lane),))

    def complete(self, request: PendingRequest, replica: str) -> None:
        """Ends an attempt of a call on a replica."""
        id_ = request.metadata.internal_request_id
        self.router.on_request_completed(ReplicaID(replica, DEPLOYMENT), id_)

    async def send(self, request: PendingRequest, replica: str) -> None:
        """Sends a call to a replica, as Ray does: the first one with room."""
        request.future.set_result(
            cast(
                RunningReplica,
                next(r for r in self.replicas if str(r.replica_id.unique_id) == replica),
            )
        )
        await asyncio.sleep(0)

    async def route_again(self, request: PendingRequest) -> str:
        """Returns the replica that a call goes to whose first attempt failed."""
        request.reset_future()  # type: ignore[no-untyped-call]
        ranks = await self.router.choose_replicas(
            cast(list[RunningReplica], self.replicas), request
        )
        return ranks[0][0].replica_id.unique_id


async def test_calls_that_are_routed_before_any_is_sent_go_to_different_replicas() -> None:
    routing = Routing(a=100, b=100)
    documents, _ = await routing.run(*["some words " * 20] * 64)
    queries = {(await routing.run("a query"))[0] for _ in range(20)}
    assert queries == {"a", "b"} - {documents}


async def test_the_end_of_a_call_frees_its_replica() -> None:
    routing = Routing(a=100, b=100)
    first, request = await routing.run("long " * 1000)
    second, _ = await routing.run("short " * 100)
    assert first != second
    routing.complete(request, first)
    assert (await routing.run("a query"))[0] == first


async def test_a_call_that_is_cancelled_before_it_is_sent_frees_its_replica() -> None:
    routing = Routing(a=100, b=100)
    first, request = await routing.run("long " * 1000)
    await routing.run("short " * 100)
    request.future.cancel()
    await asyncio.sleep(0)
    assert (await routing.run("a query"))[0] == first


async def test_the_end_of_an_attempt_leaves_the_next_one_assigned() -> None:
    routing = Routing(a=100, b=100)
    first, request = await routing.run("long " * 1000)
    await routing.send(request, first)
    second = await routing.route_again(request)
    assert second != first
    await routing.send(request, second)
    routing.complete(request, first)
    assert {(await routing.run("a query"))[0] for _ in range(4)} == {first}
    routing.complete(request, second)
    assert {(await routing.run("a query"))[0] for _ in range(8)} == {first, second}


async def test_a_call_counts_for_the_replica_that_got_it() -> None:
    routing = Routing(a=100, b=100)
    full, request = await routing.run("long " * 1000)
    (other,) = {"a", "b"} - {full}
    await routing.send(request, other)
    assert {(await routing.run("a query"))[0] for _ in range(4)} == {full}
    routing.complete(request, other)
    assert {(await routing.run("a query"))[0] for _ in range(8)} == {full, other}


async def test_a_replica_that_cannot_be_reached_is_the_last_choice() -> None:
    routing = Routing(a=100, b=100)
    routing.router.on_replica_actor_unavailable(ReplicaID("a", DEPLOYMENT))
    assert {(await routing.run("long " * 1000))[0] for _ in range(6)} == {"b"}


async def test_a_slow_replica_gets_less() -> None:
    routing = Routing(fast=300, slow=100)
    chosen = [(await routing.run("words " * 40, lane="bulk"))[0] for _ in range(40)]
    assert chosen.count("slow") == 10


async def test_other_calls_take_no_room() -> None:
    routing = Routing(a=100, b=100)
    for args in (("engine", ("a text", "another"), True), (), ("engine", ())):
        await routing.route(*args)
    chosen = {(await routing.route("engine"))[0] for _ in range(2)}
    assert chosen == {"a", "b"}


async def test_what_waits_moves_to_a_new_replica() -> None:
    routing, cancelled = Routing(old=1), list[int]()

    async def wait(i: int) -> None:
        groups = (TextGroup((f"text {i}",)),)
        with MOVABLE_CALLS.register(("engine", groups)) as call:
            _, request = await routing.route("engine", groups)
            await routing.send(request, "old")
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if call.is_to_be_sent_again():
                    cancelled.append(i)

    calls = [asyncio.ensure_future(wait(i)) for i in range(40)]
    await asyncio.sleep(0.01)
    routing.router.update_replicas(cast(list[RunningReplica], routing.replicas))
    await asyncio.sleep(0.01)
    assert cancelled == []
    routing.replicas.append(FakeReplica("new", 1))
    routing.router.update_replicas(cast(list[RunningReplica], routing.replicas))
    await asyncio.sleep(0.01)
    assert 15 <= len(cancelled) <= 20
    assert cancelled == sorted(cancelled)
    for call in calls:
        call.cancel()
    # Sent again, they go to the new replica, which has as much then.
    chosen = [(await routing.run(f"text {i}"))[0] for i in cancelled]
    assert set(chosen) == {"new"}


async def test_a_deployment_computes_what_is_routed_before_further_texts() -> None:
    routing = Routing(a=100)
    routing.router.update_replicas(cast(list[RunningReplica], routing.replicas))
    queue = DEPLOYMENT_QUEUES[DEPLOYMENT.name]
    _, request = await routing.run("long " * 400)
    busy = queue.forecast("interactive", 100)
    assert busy is not None
    assert (busy.wait_s > 4, busy.run_s) == (True, 1)
    routing.complete(request, "a")
    assert queue.forecast("interactive", 100) == (0, 1)
