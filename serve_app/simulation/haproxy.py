"""HAProxy in front of `colocated` deployments, as it balances by `leastconn`."""

from collections.abc import Sequence

from serve_app.simulation.replica import Replica


class HAProxy:
    """Selects the replica with the fewest open requests, of those that this process has sent.

    Ray starts another HAProxy process whenever the replicas change. It counts from zero: what the
    processes before it have sent, and replicas still compute, is unknown to it.
    """

    def __init__(self) -> None:
        self._open: dict[Replica, int] = {}
        self._sent_to: dict[int, Replica] = {}  # request → replica, since the latest reload
        self._turn = 0

    def reload(self, replicas: Sequence[Replica]) -> None:
        """Replaces the process by one that knows these replicas, and no request."""
        self._open = dict.fromkeys(replicas, 0)
        self._sent_to = {}
        self._turn = 0

    @property
    def has_replicas(self) -> bool:
        """Whether it can send a request."""
        return bool(self._open)

    def select(self) -> Replica:
        """Returns the replica for the next request. Among equals, they take turns."""
        replicas = [*self._open]
        self._turn = (self._turn + 1) % len(replicas)
        return min([*replicas[self._turn :], *replicas[: self._turn]], key=self._open.__getitem__)

    def sent(self, request: int, replica: Replica) -> None:
        """Counts a request as open."""
        self._open[replica] += 1
        self._sent_to[request] = replica

    def ended(self, request: int) -> None:
        """Counts a request as answered, unless an earlier process has sent it."""
        replica = self._sent_to.pop(request, None)
        if replica is not None:
            self._open[replica] -= 1
