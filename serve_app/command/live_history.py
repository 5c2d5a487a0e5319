"""What the live view in a terminal shows: snapshots, and what the user has chosen."""

from collections import deque
from collections.abc import Callable, Sequence

from serve_app.command.live_stream import Disconnected
from serve_app.live.snapshot import ModelLive, Snapshot

#: As many as the sparklines of a wide terminal show.
_LENGTH = 400
#: Orders of the models. The first one is that of the configuration.
_ORDERS: dict[str, Callable[[ModelLive], tuple[float, str]] | None] = {
    "as configured": None,
    "by requests": lambda model: (-(model["requests_per_s"] or 0.0), model["name"]),
    "by queued tokens": lambda model: (-model["queued_tokens"], model["name"]),
    "by name": lambda model: (0.0, model["name"]),
}


class LiveHistory:
    """The latest snapshots of a service. A paused one goes on collecting, and shows older ones."""

    def __init__(self) -> None:
        self._snapshots = deque[Snapshot](maxlen=_LENGTH)
        self._paused: Sequence[Snapshot] | None = None
        self._orders = [*_ORDERS]
        self.lost: str | None = None  #: why there is no connection; None: there is one

    @property
    def is_paused(self) -> bool:
        """Whether new snapshots are not shown."""
        return self._paused is not None

    @property
    def shown(self) -> Sequence[Snapshot]:
        """The snapshots to show, oldest first; never empty once one was received."""
        return self._snapshots if self._paused is None else self._paused

    @property
    def order(self) -> str:
        """The order of the models."""
        return self._orders[0]

    def receive(self, event: Snapshot | Disconnected) -> None:
        """Adds a snapshot, or notes that there is no connection."""
        if isinstance(event, Disconnected):
            self.lost = event.reason
        else:
            self.lost = None
            self._snapshots.append(event)

    def toggle_pause(self) -> None:
        """Stops at the latest snapshot, or goes on with those that have come since."""
        self._paused = [*self._snapshots] if self._paused is None else None

    def next_order(self) -> None:
        """Selects the next order of the models."""
        self._orders.append(self._orders.pop(0))

    def models(self) -> list[ModelLive]:
        """Returns the models of the latest snapshot that is shown, in the selected order."""
        models = [*self.shown[-1]["models"]]
        key = _ORDERS[self.order]
        return models if key is None else sorted(models, key=key)
