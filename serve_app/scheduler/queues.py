"""The queues in front of an engine and the choice of the next batch."""

from collections import deque
from collections.abc import Sequence

from serve_app.config import EmbedderSettings
from serve_app.scheduler.pending import Queue, QueuedText

QUEUES: tuple[Queue, ...] = ("interactive", "bulk", "tokens")


class TextQueues:
    """Priority queues of texts. A batch holds texts of one queue.

    Interactive texts go first, so they wait for at most the batch that is running. The background
    queues, bulk texts and token vectors, alternate with each other. Once their oldest text has
    waited for `bulk_promotion_after_s`, they also alternate with the interactive queue.
    """

    def __init__(self) -> None:
        self._queues: dict[Queue, deque[QueuedText]] = {queue: deque() for queue in QUEUES}
        self._background: tuple[Queue, Queue] = ("bulk", "tokens")  # in order of priority
        self._last_was_background = False

    def put(self, texts: Sequence[QueuedText]) -> None:
        """Adds texts to their queue, which is the same for all."""
        if texts:
            self._queues[texts[0].group.queue].extend(texts)

    def drain(self) -> list[QueuedText]:
        """Empties all queues and returns their texts."""
        texts = [text for queue in self._queues.values() for text in queue]
        for queue in self._queues.values():
            queue.clear()
        return texts

    def next_batch(
        self, settings: EmbedderSettings, max_batch_tokens: int, now_s: float
    ) -> list[QueuedText]:
        """Removes and returns the next batch; empty if no text is pending.

        The batch holds the oldest text of its queue, whatever its length, and the texts closest to
        it in length among the next `batch_lookahead_texts`, as long as all of them, padded to the
        longest, fit into `max_batch_tokens`.
        """
        for queue in self._by_priority(settings.bulk_promotion_after_s, now_s):
            batch = _pack(self._queues[queue], settings, max_batch_tokens, now_s)
            if batch:
                self._last_was_background = queue != "interactive"
                if queue == self._background[0]:
                    self._background = self._background[::-1]
                return batch
        return []

    def _by_priority(self, promotion_after_s: float, now_s: float) -> tuple[Queue, ...]:
        background = [self._queues[name] for name in self._background]
        waited_s = max((now_s - q[0].group.arrival_s for q in background if q), default=0.0)
        if waited_s > promotion_after_s and not self._last_was_background:
            return *self._background, "interactive"
        return "interactive", *self._background


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
    oldest = window[0].length
    by_distance = sorted(range(len(window)), key=lambda i: abs(window[i].length - oldest))
    longest, batch = 0, set[int]()
    for i in by_distance[: settings.max_batch_texts]:
        longest = max(longest, window[i].length)
        if batch and longest * (len(batch) + 1) > max_batch_tokens:
            break
        batch.add(i)
    queue.extendleft(window[i] for i in range(len(window) - 1, -1, -1) if i not in batch)
    return [window[i] for i in sorted(batch)]
