"""A simulated replica: two lanes, the scheduler's packing and budgets, and its reports."""

from collections import deque
from collections.abc import Callable, Sequence

from serve_app.scheduler.batch_budget import BatchBudget, BatchBudgets
from serve_app.scheduler.packing import bulk_goes_first, select_batch
from serve_app.scheduler.replica_load import ReplicaLoad
from serve_app.simulation.service import SimulatedService

_MODEL = ""
#: Rates are over at least this time.
_MIN_INTERVAL_S = 0.5


class Replica:
    """Computes texts, which are positions in a trace. Times are in seconds."""

    __slots__ = (
        "_arrival_s",
        "_batch",
        "_budget",
        "_budgets",
        "_bulk",
        "_busy_from_s",
        "_busy_s",
        "_capacity",
        "_cost",
        "_interactive",
        "_last_was_bulk",
        "_limits",
        "_offered",
        "_reported_s",
        "_served",
        "_startup_s",
        "_tokens",
        "is_leaving",
        "ordered_s",
        "queued",
        "requests",
        "tokens",
    )

    def __init__(
        self,
        service: SimulatedService,
        arrival_s: Sequence[float],
        tokens: Sequence[int],
        ordered_s: float,
        clock: Callable[[], float],
    ) -> None:
        """Creates a replica that is ready.

        Args:
            service: speed and settings.
            arrival_s: of all texts of the trace.
            tokens: of all texts of the trace.
            ordered_s: when its start was ordered; its costs begin then.
            clock: the simulated time.
        """
        settings = service.settings
        self._cost = service.cost
        self._startup_s = service.startup_s
        self._limits = settings
        self._arrival_s, self._tokens = arrival_s, tokens
        self._budgets = BatchBudgets(1, clock)
        self._interactive, self._bulk = deque[int](), deque[int]()
        self._offered = [0, 0]
        self._batch: Sequence[int] = ()
        self._budget: BatchBudget | None = None
        self._last_was_bulk = False
        self._busy_from_s, self._busy_s = 0.0, 0.0
        self._served = 0
        self._capacity = service.capacity_tokens_per_s
        self._reported_s = clock()
        self.ordered_s = ordered_s
        self.is_leaving = False
        self.queued = [0, 0]  #: tokens of each lane that wait or are computed
        self.tokens = 0  #: of both lanes
        self.requests = 0  #: not answered yet

    @property
    def is_busy(self) -> bool:
        """Whether a batch is running."""
        return bool(self._batch)

    def accepts(self, tokens: int, is_bulk: bool) -> bool:
        """Whether a request fits into the queue. A large one is accepted below the limit."""
        limit, queued = self._limits.max_queued_tokens, self.queued[is_bulk]
        return not queued or queued + (tokens if tokens <= limit // 8 else 0) <= limit

    def add(
        self, start: int, end: int, tokens: int, is_bulk: bool, *, is_moved: bool = False
    ) -> None:
        """Queues the texts of a request. One that is moved is no arrival."""
        (self._bulk if is_bulk else self._interactive).extend(range(start, end))
        if not is_bulk:
            self._budgets.record_interactive()
        self.queued[is_bulk] += tokens
        self._offered[is_bulk] += 0 if is_moved else tokens
        self.tokens += tokens
        self.requests += 1

    def waiting(self, is_bulk: bool) -> Sequence[int]:
        """Returns the texts that wait for a batch."""
        return tuple(self._bulk if is_bulk else self._interactive)

    def remove(self, start: int, end: int, tokens: int, is_bulk: bool) -> None:
        """Removes the texts of a request, all of which wait."""
        queue = self._bulk if is_bulk else self._interactive
        kept = [text for text in queue if not start <= text < end]
        queue.clear()
        queue.extend(kept)
        self.queued[is_bulk] -= tokens
        self.tokens -= tokens
        self.requests -= 1

    def start_batch(self, now_s: float) -> tuple[Sequence[int], float]:
        """Starts a batch; returns its texts and its duration, or no texts if none wait."""
        interactive, bulk = self._interactive, self._bulk
        if not interactive and not bulk:
            return (), 0.0
        settings = self._limits
        is_bulk = not interactive or (
            bool(bulk)
            and bulk_goes_first(
                now_s - self._arrival_s[bulk[0]],
                settings.bulk_promotion_after_s,
                self._last_was_bulk,
            )
        )
        queue = bulk if is_bulk else interactive
        limit = settings.max_batch_tokens
        self._budget = self._budgets.select(_MODEL, self.queued[0], limit)
        batch, longest = self._take(queue, self._budget.tokens(limit))
        self._last_was_bulk = is_bulk
        self._batch = batch
        self._busy_from_s = now_s
        return batch, self._cost.seconds(longest * len(batch))

    def _take(self, queue: deque[int], max_tokens: int) -> tuple[Sequence[int], int]:
        """Removes the texts of the next batch; returns them and the longest length."""
        if len(queue) == 1:
            text = queue.popleft()
            return (text,), self._tokens[text]
        window = [
            queue.popleft() for _ in range(min(len(queue), self._limits.batch_lookahead_texts))
        ]
        lengths = [self._tokens[text] for text in window]
        selected = select_batch(lengths, self._limits.max_batch_texts, max_tokens)
        if len(selected) == len(window):
            return window, max(lengths)
        taken = set(selected)
        queue.extendleft(window[i] for i in range(len(window) - 1, -1, -1) if i not in taken)
        return [window[i] for i in selected], max(lengths[i] for i in selected)

    def end_batch(self, now_s: float, started_s: float) -> Sequence[int]:
        """Ends the running batch; returns its texts."""
        batch, budget = self._batch, self._budget
        assert budget is not None
        lengths = [self._tokens[text] for text in batch]
        tokens, padded = sum(lengths), max(lengths) * len(lengths)
        budget.record_batch(
            padded,
            now_s - started_s,
            target_s=self._limits.batch_target_s,
            limit=self._limits.max_batch_tokens,
        )
        self.queued[self._last_was_bulk] -= tokens
        self.tokens -= tokens
        self._served += tokens
        self._busy_s += now_s - self._busy_from_s
        self._batch = ()
        return batch

    def report(self, now_s: float) -> ReplicaLoad:
        """Returns the load since the previous report."""
        if self._batch:
            self._busy_s += now_s - self._busy_from_s
            self._busy_from_s = now_s
        # A replica that has just become ready holds what was kept back for it.
        elapsed_s = max(now_s - self._reported_s, _MIN_INTERVAL_S)
        oldest_s = now_s - self._arrival_s[self._interactive[0]] if self._interactive else 0.0
        load = ReplicaLoad(
            queued_interactive_tokens=self.queued[0],
            queued_bulk_tokens=self.queued[1],
            oldest_interactive_s=oldest_s,
            offered_interactive_tokens_per_s=self._offered[0] / elapsed_s,
            offered_bulk_tokens_per_s=self._offered[1] / elapsed_s,
            served_tokens_per_s=self._served / elapsed_s,
            busy_share=min(self._busy_s / elapsed_s, 1.0),
            capacity_tokens_per_s=self._capacity,
            startup_s=self._startup_s,
        )
        self._reported_s, self._busy_s, self._served, self._offered = now_s, 0.0, 0, [0, 0]
        return load
