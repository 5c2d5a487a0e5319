"""The queues in front of the engines of a process and the choice of the next batch."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from serve_app.config import EmbedderSettings
from serve_app.scheduler.pending import QueuedText, QueueKey


class TextQueues:
    """Priority queues of texts, one for each model, task and lane.

    Interactive texts go first, so they wait for at most the batch that is running; of several
    interactive queues, the one with the oldest text. Bulk queues take turns. Once their oldest text
    has waited for `bulk_promotion_after_s`, they also alternate with the interactive ones.
    """

    def __init__(self) -> None:
        self._queues: dict[QueueKey, deque[QueuedText]] = {}  # bulk queues in order of their turns
        self._last_was_bulk = False

    def put(self, texts: Sequence[QueuedText]) -> None:
        """Adds texts to their queue, which is the same for all."""
        if texts:
            key = texts[0].group.queue
            if key not in self._queues:
                self._queues[key] = deque()
            self._queues[key].extend(texts)

    def drain(self) -> list[QueuedText]:
        """Empties all queues and returns their texts."""
        texts = [text for queue in self._queues.values() for text in queue]
        self._queues.clear()
        return texts

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
        for key in self._by_priority(settings.bulk_promotion_after_s, now_s):
            limit = max_batch_tokens(key)
            batch = _pack(self._queues[key], settings, limit, now_s) if limit else []
            if batch:
                self._last_was_bulk = key.lane == "bulk"
                self._queues[key] = self._queues.pop(key)  # its turn is over
                return batch
        return []

    def _by_priority(self, promotion_after_s: float, now_s: float) -> Iterator[QueueKey]:
        filled = [(key, queue[0].group.arrival_s) for key, queue in self._queues.items() if queue]
        if len(filled) < 2:
            return iter([key for key, _ in filled])
        interactive = [item for item in filled if item[0].lane == "interactive"]
        bulk = [item for item in filled if item[0].lane == "bulk"]
        interactive.sort(key=lambda item: item[1])
        waited_s = max((now_s - arrival_s for _, arrival_s in bulk), default=0.0)
        promoted = waited_s > promotion_after_s and not self._last_was_bulk
        order = [*bulk, *interactive] if promoted else [*interactive, *bulk]
        return iter([key for key, _ in order])


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
