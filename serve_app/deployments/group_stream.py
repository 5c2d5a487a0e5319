"""Calls that run groups of texts on another deployment, and bring each result as it is known."""

from collections.abc import Sequence
from typing import Any

from ray.serve.handle import DeploymentHandle

from serve_app.cache.coalescer import Deliver
from serve_app.deployments.deliveries import GroupResult, Part
from serve_app.deployments.movable_calls import resent
from serve_app.deployments.retrying_call import RetryingCall
from serve_app.deployments.wake_up import WakeUp
from serve_app.errors import EmbedServeError
from serve_app.types import TextGroup


class GroupStream(RetryingCall):
    """The methods `run` and `run_each` of another deployment, as a function that delivers results.

    A stream costs each process about half a millisecond more than a reply, so a group that is alone
    gets a reply. In a reply, each of several groups would wait for the slowest. If the replica
    dies, or the router moves the call, the groups without a result are sent again.
    """

    def __init__(self, handle: DeploymentHandle[Any], *, wake_up: WakeUp | None = None) -> None:
        """Prepares the calls; see `RetryingCall`."""
        super().__init__(handle, "run", wake_up=wake_up)
        self._stream = self._method.options(method_name="run_each", stream=True)

    async def __call__(
        self, engine_id: str, groups: tuple[TextGroup, ...], deliver: Deliver
    ) -> Any:
        """Runs the groups on a replica and delivers the result of each.

        Args:
            engine_id: `ModelSpec.engine_id`.
            groups: of one lane.
            deliver: takes the index of a group, and its result.

        Returns:
            True at the end; None if the replica doesn't have the engine.

        Raises:
            EmbedServeError: the method returned this error, for all groups without a result.
            Unavailable: each attempt's replica died, or the deployment has none.
            Overloaded: the deployment's queue is full.
        """
        return await super().__call__(engine_id, groups, _Delivery(deliver, len(groups)))

    def _request(self, args: Sequence[Any]) -> Any:
        engine_id, groups, _ = args
        method = self._method if len(groups) == 1 else self._stream
        return method.remote(engine_id, groups)

    async def _receive(self, response: Any, args: Sequence[Any]) -> Any:
        _, groups, delivery = args
        if len(groups) == 1:
            reply = await response
            if reply is None or isinstance(reply, EmbedServeError):
                return reply
            delivery.take(enumerate(reply))
            return True
        part: Part
        async for part in response:
            if part is None or isinstance(part, EmbedServeError):
                return part
            delivery.take(part)
        return True

    def _again(self, args: Sequence[Any]) -> Sequence[Any]:
        engine_id, groups, delivery = resent(args)
        return (engine_id, delivery.without_result(groups), delivery)


class _Delivery:
    """Which groups of a call have no result yet, in the order in which they were last sent."""

    def __init__(self, deliver: Deliver, count: int) -> None:
        self._deliver = deliver
        self._indices = [*range(count)]  # of the groups that were sent, in the whole call
        self._delivered = set[int]()  # positions among those

    def take(self, part: Sequence[tuple[int, GroupResult]]) -> None:
        """Delivers results; each with the position of its group among those that were sent."""
        for position, result in part:
            self._delivered.add(position)
            self._deliver(self._indices[position], result)

    def without_result(self, groups: tuple[TextGroup, ...]) -> tuple[TextGroup, ...]:
        """Returns those of the groups that are to be sent again."""
        left = [i for i in range(len(groups)) if i not in self._delivered]
        self._indices = [self._indices[i] for i in left]
        self._delivered.clear()
        return tuple(groups[i] for i in left)
