"""The queues in front of the engines of a process and the choice of the next batch."""

from collections import deque
from collections.abc import Callable, Sequence

from serve_app.config import EmbedderSettings
from serve_app.scheduler.lane_queues import LaneQueues
from serve_app.scheduler.packing import select_batch
from serve_app.scheduler.pending import QueuedText, QueueKey
from serve_app.types import Lane


class TextQueues(LaneQueues[QueueKey, QueuedText]):
    """Priority queues of texts, one for each model, task and lane."""

    def put(self, texts: Sequence[QueuedText]) -> None:
        """Adds texts to their queue, which is the same for all."""
        if texts:
            self.extend(texts[0].group.queue, texts)

    def next_batch(
        self,
        settings: EmbedderSettings,
        max_batch_tokens: Callable[[QueueKey], int],
        now_s: float,
    ) -> list[QueuedText]:
        """Removes and returns the next batch; empty if no text can run.

        The batch holds the oldest text of its queue, whatever its length, and the texts closest to
        it in length among the next `batch_lookahead_texts`, as long as all of them, padded to the
        longest, fit into the limit.

        Args:
            settings: sizes of batches and windows.
            max_batch_tokens: returns the limit of a batch of a queue in padded tokens; 0: its
                engine is busy.
            now_s: the current time.
        """

        def pack(key: QueueKey, queue: deque[QueuedText]) -> list[QueuedText]:
            limit = max_batch_tokens(key)
            return _pack(queue, settings, limit, now_s) if limit else []

        return self.take(pack, settings.bulk_promotion_after_s, now_s)

    def oldest_arrival_s(self, lane: Lane) -> float | None:
        """Returns when the oldest text of a lane arrived that waits; None: none does."""
        arrivals = list[float]()
        for key, queue in self._queues.items():
            while queue and queue[0].group.future.done():
                queue.popleft()
            if queue and key.lane == lane:
                arrivals.append(queue[0].group.arrival_s)
        return min(arrivals, default=None)


def _pack(
    queue: deque[QueuedText], settings: EmbedderSettings, max_batch_tokens: int, now_s: float
) -> list[QueuedText]:
    """Removes the next batch from a queue, and texts whose group is done or past its deadline."""
    window: list[QueuedText] = []
    while queue and len(window) < settings.batch_lookahead_texts:
        text = queue.popleft()
        text.group.enforce_deadline(now_s)
        if not text.group.future.done():
            window.append(text)
    if not window:
        return []
    lengths = [text.length for text in window]
    selected = select_batch(lengths, settings.max_batch_texts, max_batch_tokens)
    batch = [window[i] for i in selected]
    taken = set(selected)
    queue.extendleft(window[i] for i in range(len(window) - 1, -1, -1) if i not in taken)
    return batch
