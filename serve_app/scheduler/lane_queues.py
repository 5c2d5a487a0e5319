"""Queues with two lanes, and the order in which they are emptied."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Generic, Protocol, TypeVar

from serve_app.scheduler.packing import bulk_goes_first
from serve_app.scheduler.pending import QueuedGroup
from serve_app.types import Lane


class LaneKey(Protocol):
    """Names a queue."""

    @property
    def lane(self) -> Lane:
        """The priority of its texts."""
        ...


class GroupedText(Protocol):
    """A text of a group."""

    @property
    def group(self) -> QueuedGroup:
        """The group of the text."""
        ...


KeyT = TypeVar("KeyT", bound=LaneKey)
TextT = TypeVar("TextT", bound=GroupedText)


class LaneQueues(Generic[KeyT, TextT]):
    """Priority queues of texts.

    Interactive texts go first, so they wait for at most the batch that is running; of several
    interactive queues, the one with the oldest text. Bulk queues take turns. Once their oldest text
    has waited for `bulk_promotion_after_s`, they also alternate with the interactive ones.
    """

    def __init__(self) -> None:
        self._queues: dict[KeyT, deque[TextT]] = {}  # bulk queues in order of their turns
        self._last_was_bulk = False

    def __iter__(self) -> Iterator[TextT]:
        return chain.from_iterable(self._queues.values())

    def count(self, key: KeyT) -> int:
        """Returns the number of texts in a queue."""
        return len(self._queues.get(key, ()))

    def count_lane(self, lane: Lane) -> int:
        """Returns the number of texts in the queues of a lane."""
        return sum(len(queue) for key, queue in self._queues.items() if key.lane == lane)

    def extend(self, key: KeyT, texts: Sequence[TextT]) -> None:
        """Adds texts to a queue."""
        if key not in self._queues:
            self._queues[key] = deque()
        self._queues[key].extend(texts)

    def drain(self) -> list[TextT]:
        """Empties all queues and returns their texts."""
        texts = [*self]
        self._queues.clear()
        return texts

    def take(
        self,
        pack: Callable[[KeyT, deque[TextT]], list[TextT]],
        promotion_after_s: float,
        now_s: float,
    ) -> list[TextT]:
        """Removes and returns the next batch; empty if no text can run.

        Args:
            pack: removes and returns the next batch of one queue; empty if it has none.
            promotion_after_s: how long bulk texts wait before they alternate.
            now_s: the current time.
        """
        for key in self._by_priority(promotion_after_s, now_s):
            batch = pack(key, self._queues[key])
            if batch:
                self._last_was_bulk = key.lane == "bulk"
                self._queues[key] = self._queues.pop(key)  # its turn is over
                return batch
        return []

    def _by_priority(self, promotion_after_s: float, now_s: float) -> Iterator[KeyT]:
        filled = [(key, queue[0].group.arrival_s) for key, queue in self._queues.items() if queue]
        if len(filled) < 2:
            return iter([key for key, _ in filled])
        interactive = [item for item in filled if item[0].lane == "interactive"]
        bulk = [item for item in filled if item[0].lane == "bulk"]
        interactive.sort(key=lambda item: item[1])
        waited_s = max((now_s - arrival_s for _, arrival_s in bulk), default=0.0)
        bulk_first = bulk_goes_first(waited_s, promotion_after_s, self._last_was_bulk)
        order = [*bulk, *interactive] if bulk_first else [*interactive, *bulk]
        return iter([key for key, _ in order])
