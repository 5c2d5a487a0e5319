"""The texts that wait for an engine, and which of them make the next batch."""

from collections import deque
from collections.abc import Sequence

from serve_app.config import EmbedderSettings
from serve_app.scheduler.pending import Queue, QueuedText


class TextQueues:
    """Queues of texts. Interactive ones go first; others that have waited long take turns.

    The others are bulk, and texts whose tokens' vectors are asked for; these two take turns with
    each other. A batch holds texts of one queue: an interactive text never waits for others beside
    it, only for a batch of them that runs already.
    """

    def __init__(self) -> None:
        self._waiting: dict[Queue, deque[QueuedText]] = {
            "interactive": deque(),
            "bulk": deque(),
            "tokens": deque(),
        }
        self._others: tuple[Queue, Queue] = ("bulk", "tokens")  # whose turn it is, first
        self._others_had_their_turn = False

    def put(self, texts: Sequence[QueuedText]) -> None:
        """Queues the texts of one submission."""
        if texts:
            self._waiting[texts[0].submission.queue].extend(texts)

    def take_all(self) -> list[QueuedText]:
        """Empties both."""
        taken = [text for lane in self._waiting.values() for text in lane]
        for lane in self._waiting.values():
            lane.clear()
        return taken

    def next_batch(
        self, settings: EmbedderSettings, max_batch_tokens: int, now_s: float
    ) -> list[QueuedText]:
        """Takes the next batch; empty when nothing waits that anybody wants.

        It begins with the oldest text of its queue and takes those of most similar length among the
        next `batch_lookahead_texts`, while all of them, padded to the longest, fit into the budget. The
        oldest goes whatever its length.
        """
        for queue in self._order(settings.bulk_promotion_after_s, now_s):
            batch = _pack(self._waiting[queue], settings, max_batch_tokens, now_s)
            if batch:
                self._others_had_their_turn = queue != "interactive"
                if queue == self._others[0]:
                    self._others = self._others[::-1]
                return batch
        return []

    def _order(self, bulk_promotion_after_s: float, now_s: float) -> tuple[Queue, ...]:
        waiting = [self._waiting[other] for other in self._others]
        waited_s = max((now_s - q[0].submission.arrived_s for q in waiting if q), default=0.0)
        if waited_s > bulk_promotion_after_s and not self._others_had_their_turn:
            return *self._others, "interactive"
        return "interactive", *self._others


def _pack(
    waiting: deque[QueuedText], settings: EmbedderSettings, max_batch_tokens: int, now_s: float
) -> list[QueuedText]:
    window: list[QueuedText] = []
    while waiting and len(window) < settings.batch_lookahead_texts:
        text = waiting.popleft()
        if text.submission.wanted(now_s):
            window.append(text)
    if not window:
        return []
    oldest = window[0].length
    nearest = sorted(range(len(window)), key=lambda i: abs(window[i].length - oldest))
    longest, taken = 0, set[int]()
    for i in nearest[: settings.max_batch_texts]:
        longest = max(longest, window[i].length)
        if taken and longest * (len(taken) + 1) > max_batch_tokens:
            break
        taken.add(i)
    waiting.extendleft(window[i] for i in range(len(window) - 1, -1, -1) if i not in taken)
    return [window[i] for i in sorted(taken)]
