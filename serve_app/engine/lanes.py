"""The texts that wait for an engine, and which of them make the next batch."""

from collections import deque
from collections.abc import Sequence

from serve_app.config import EmbedderSettings
from serve_app.engine.submission import Waiting
from serve_app.types import Lane


class Lanes:
    """Two queues of texts. Interactive ones go first; bulk that has waited long takes turns.

    A batch holds texts of one lane: an interactive text never waits for bulk beside it, only for a
    bulk batch that runs already.
    """

    def __init__(self) -> None:
        self._waiting: dict[Lane, deque[Waiting]] = {"interactive": deque(), "bulk": deque()}
        self._bulk_had_its_turn = False

    def put(self, texts: Sequence[Waiting]) -> None:
        """Queues the texts of one submission."""
        if texts:
            self._waiting[texts[0].submission.group.lane].extend(texts)

    def take_all(self) -> list[Waiting]:
        """Empties both."""
        taken = [text for lane in self._waiting.values() for text in lane]
        for lane in self._waiting.values():
            lane.clear()
        return taken

    def next_batch(
        self, settings: EmbedderSettings, budget_tokens: int, now_s: float
    ) -> list[Waiting]:
        """Takes the next batch; empty when nothing waits that anybody wants.

        It begins with the oldest text of its lane and takes those of most similar length among the
        next `lookahead_texts`, while all of them, padded to the longest, fit into the budget. The
        oldest goes whatever its length.
        """
        for lane in self._order(settings.bulk_max_wait_s, now_s):
            batch = _pack(self._waiting[lane], settings, budget_tokens, now_s)
            if batch:
                self._bulk_had_its_turn = lane == "bulk"
                return batch
        return []

    def _order(self, bulk_max_wait_s: float, now_s: float) -> tuple[Lane, Lane]:
        bulk = self._waiting["bulk"]
        waited_s = now_s - bulk[0].submission.arrived_s if bulk else 0.0
        if waited_s > bulk_max_wait_s and not self._bulk_had_its_turn:
            return "bulk", "interactive"
        return "interactive", "bulk"


def _pack(
    waiting: deque[Waiting], settings: EmbedderSettings, budget_tokens: int, now_s: float
) -> list[Waiting]:
    window: list[Waiting] = []
    while waiting and len(window) < settings.lookahead_texts:
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
        if taken and longest * (len(taken) + 1) > budget_tokens:
            break
        taken.add(i)
    waiting.extendleft(window[i] for i in range(len(window) - 1, -1, -1) if i not in taken)
    return [window[i] for i in sorted(taken)]
