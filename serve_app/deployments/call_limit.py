"""The limit of calls in flight, which follows the number of replicas that compute them."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection

from serve_app.types import ReplicaCount


class CallLimit:
    """So many calls for each replica. Belongs to one event loop.

    With a fixed limit, most of many replicas would be idle while requests wait for calls to end.
    """

    def __init__(
        self,
        counts: Collection[Callable[[], Awaitable[ReplicaCount | None]]],
        apply: Callable[[int], None],
        *,
        period_s: float = 2.0,
    ) -> None:
        """Creates the limit.

        Args:
            counts: each returns the replicas of a deployment; None: unknown. The largest counts.
            apply: takes the limit, at each change.
            period_s: time between two counts.
        """
        self._counts = counts
        self._apply = apply
        self._period_s = period_s
        self._per_replica = 1
        self._replicas = 1
        self._task: asyncio.Task[None] | None = None

    def set(self, per_replica: int) -> None:
        """Applies a setting: the calls for each replica."""
        self._per_replica = per_replica
        self._apply(per_replica * self._replicas)

    def start(self) -> None:
        """Starts to count. Further calls do nothing."""
        if self._task is None:
            self._task = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        """Stops counting."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _follow(self) -> None:
        while True:
            counts = await asyncio.gather(*(count() for count in self._counts))
            running = [count.running for count in counts if count is not None]
            replicas = max(*running, 1) if running else self._replicas
            if replicas != self._replicas:
                self._replicas = replicas
                self.set(self._per_replica)
            await asyncio.sleep(self._period_s)
