"""Admission to one queue: a limit on its tokens, and large groups that enter it in parts."""

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from serve_app.errors import InvalidRequest, Overloaded
from serve_app.scheduler.load import SpeedMeter
from serve_app.scheduler.pending import QueuedGroup

#: A group of more than this share of the limit is large.
_PART_SHARE = 1 / 8
_MAX_RETRY_AFTER_S = 60


class SizedText(Protocol):
    """A text of known size."""

    length: int  #: number of tokens


TextT = TypeVar("TextT", bound=SizedText)


@dataclass(slots=True, eq=False)
class _LargeGroup(Generic[TextT]):
    """The texts of a large group that aren't in the queue yet."""

    group: QueuedGroup
    texts: deque[TextT]
    tokens: int


class QueueAdmission(Generic[TextT]):
    """Decides which groups enter a queue, and when. The queues don't share their limits.

    A large group is queued in parts, one large group after another, so it takes at most an eighth
    of the queue, and texts that arrive later wait for one part of it. It is admitted while the
    large groups before it have less than the queue's limit left, whatever its own size. So smaller
    groups that arrive all the time don't keep it out.
    """

    def __init__(
        self,
        name: str,
        clock: Callable[[], float] = time.monotonic,
        *,
        min_part_tokens: int = 0,
    ) -> None:
        """An empty queue.

        Args:
            name: of the lane, for messages.
            clock: monotonic time in seconds.
            min_part_tokens: the least size of a part of a large group; 0: an eighth of the queue.
        """
        self._name = name
        self._clock = clock
        self._min_part_tokens = min_part_tokens
        self._speed = SpeedMeter(clock)
        self._backlog: deque[_LargeGroup[TextT]] = deque()
        self.tokens = 0  #: admitted, and neither computed nor cancelled

    @property
    def has_backlog(self) -> bool:
        """Whether parts of large groups wait to be queued."""
        return bool(self._backlog)

    @property
    def backlog_texts(self) -> int:
        """The number of texts that wait to be queued."""
        return sum(len(large.texts) for large in self._backlog)

    def refusal(
        self, tokens: int, timeout_s: float, *, limit: int, tokens_per_s: float
    ) -> Overloaded | None:
        """Returns why a group can't be admitted now; None if it can.

        Args:
            tokens: size of the group.
            timeout_s: the caller's timeout.
            limit: tokens that may be in the queue.
            tokens_per_s: speed of the engine, for a queue whose own speed isn't known yet.
        """
        if not self.tokens:
            return None
        speed = self._speed.tokens_per_s or tokens_per_s
        backlog = sum(large.tokens for large in self._backlog)
        part = self._part_tokens(limit)
        if tokens <= part:
            ahead, hint = self.tokens - backlog, ""
            if ahead + tokens <= limit:
                return None
        else:
            ahead, hint = self.tokens, f", or send at most {part} tokens in one request"
            in_time = not speed or (ahead + tokens) / speed <= timeout_s
            if backlog < limit and in_time:
                return None
        wait_s = math.ceil(ahead / speed) if speed else 1
        return Overloaded(
            f"{ahead} tokens are queued in the {self._name} lane and {tokens} more don't fit; try "
            f"again later{hint}.",
            max(1, min(wait_s, _MAX_RETRY_AFTER_S)),
        )

    def admit(self, group: QueuedGroup, texts: Sequence[TextT], limit: int) -> Sequence[TextT]:
        """Adds a group and returns those of its texts that may be queued now."""
        if not self.tokens:
            self._speed.start()
        tokens = group.tokens_in_queue
        self.tokens += tokens
        if tokens <= self._part_tokens(limit):
            return texts
        self._backlog.append(_LargeGroup(group, deque(texts), tokens))
        return self.next_part(limit)

    def next_part(self, limit: int) -> list[TextT]:
        """Removes and returns the texts of large groups that may be queued now."""
        part = list[TextT]()
        while self._backlog:
            large = self._backlog[0]
            # Texts of the group that were queued earlier and still wait.
            room = self._part_tokens(limit) - (large.group.tokens_in_queue - large.tokens)
            while large.texts and room > 0:
                text = large.texts.popleft()
                large.tokens -= text.length
                room -= text.length
                part.append(text)
            if large.texts:
                break
            self._backlog.popleft()
        return part

    def complete(self, tokens: int) -> None:
        """Removes the tokens of a batch that has run."""
        self._speed.record(tokens)
        self.tokens -= tokens

    def release(self, group: QueuedGroup) -> None:
        """Removes the texts of a finished or cancelled group that still wait for a batch."""
        self.tokens -= group.tokens_in_queue
        self._backlog = deque(large for large in self._backlog if large.group is not group)

    def _part_tokens(self, limit: int) -> int:
        return max(_part_tokens(limit), self._min_part_tokens)

    def drain(self) -> list[TextT]:
        """Removes and returns the texts that aren't queued yet."""
        texts = [text for large in self._backlog for text in large.texts]
        self._backlog.clear()
        return texts


def is_large(tokens: int, limit: int) -> bool:
    """Returns whether a group of this size is queued in parts."""
    return tokens > _part_tokens(limit)


def _part_tokens(limit: int) -> int:
    return int(limit * _PART_SHARE)


def too_many_tokens(tokens: int, limit: int) -> InvalidRequest:
    """Returns the error of a request whose texts have too many tokens."""
    return InvalidRequest(
        f"The texts have {tokens} tokens; at most {limit} are accepted. Send fewer: split the list "
        "into several requests.",
        "texts",
    )
