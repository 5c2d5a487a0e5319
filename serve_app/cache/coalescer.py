"""Coalesces groups of texts: one call to the next tier instead of many small ones."""

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from serve_app.errors import Unavailable
from serve_app.types import EncodedVectors, TextGroup

_MAX_GROUPS = 64  # in one call
#: Smaller calls are not split further: each costs about as much as a query.
_MIN_SPLIT_GROUPS = 8
#: Larger groups are sent in a call of their own, since they would delay smaller ones.
_MAX_COALESCED_TEXTS = 32
_MAX_COALESCED_CHARS = 16384

#: The vectors of a group, or the error that its requests get.
Result = EncodedVectors | Exception
#: Takes the index of a group in its call, and its result.
Deliver = Callable[[int, Result], None]
#: Embeds the groups of one call. Delivers the result of each as soon as it is known.
Send = Callable[[tuple[TextGroup, ...], Deliver], Awaitable[None]]


class Submission:
    """A group on its way to the next tier."""

    __slots__ = ("_on_result", "call", "done", "group")

    def __init__(self, group: TextGroup, on_result: Callable[[Result], None]) -> None:
        self.group = group
        self.call: _Call | None = None  #: None: not sent yet
        self.done = False
        self._on_result = on_result

    def resolve(self, result: Result) -> None:
        """Passes the result on, unless the submission is done."""
        if not self.done:
            self.done = True
            self._on_result(result)

    def cancel(self) -> None:
        """Drops the result. A call whose submissions are all done is cancelled."""
        self.done = True
        if self.call is not None:
            self.call.cancel_if_done()


class Coalescer:
    """Sends groups; those that arrive while calls are in flight are sent together in the next call.

    There is no timer: a group is sent at once if fewer than `max_in_flight_calls` are in flight or
    if it fills a call. Bulk and large groups are sent at once and in calls of their own.

    A call runs in an empty context, because Ray cancels calls by the context they were made in.
    """

    def __init__(self, send: Send, max_in_flight_calls: float) -> None:
        self.max_in_flight_calls = max_in_flight_calls
        self._send = send
        self._pending: deque[Submission] = deque()
        self._calls = set[_Call]()
        self._in_flight = 0
        self._dispatch_scheduled = False

    def submit(self, group: TextGroup, on_result: Callable[[Result], None]) -> Submission:
        """Sends a group, now or with the next call, and passes its result to `on_result`."""
        submission = Submission(group, on_result)
        if group.lane == "bulk" or _is_large(group):
            self._start([submission], limited=False)
        else:
            self._pending.append(submission)
            if not self._dispatch_scheduled:
                self._dispatch_scheduled = True
                # After the other groups of this turn of the loop.
                asyncio.get_running_loop().call_soon(self._dispatch)
        return submission

    def _dispatch(self) -> None:
        self._dispatch_scheduled = False
        while self._pending and (
            self._in_flight < self.max_in_flight_calls or len(self._pending) >= _MAX_GROUPS
        ):
            # The calls of a burst are of one size, since they go to different replicas.
            free = max(self.max_in_flight_calls - self._in_flight, 1)
            size = min(max(len(self._pending) / free, _MIN_SPLIT_GROUPS), _MAX_GROUPS)
            batch: list[Submission] = []
            while self._pending and len(batch) < size:
                submission = self._pending.popleft()
                if not submission.done:
                    batch.append(submission)
            if batch:
                self._start(batch, limited=True)

    def _start(self, batch: Sequence[Submission], *, limited: bool) -> None:
        self._in_flight += limited
        call = _Call(batch, self._send)
        self._calls.add(call)

        def on_call_done(task: asyncio.Task[None]) -> None:
            self._calls.discard(call)
            self._in_flight -= limited
            self._dispatch()

        call.task.add_done_callback(on_call_done)


class _Call:
    """One call to the next tier, with the groups of several requests."""

    def __init__(self, submissions: Sequence[Submission], send: Send) -> None:
        self._submissions = submissions
        for submission in submissions:
            submission.call = self
        self.task = asyncio.get_running_loop().create_task(
            self._run(send), context=contextvars.Context()
        )

    def cancel_if_done(self) -> None:
        """Cancels the call if nobody waits for its results any more."""
        if all(submission.done for submission in self._submissions):
            self.task.cancel()

    async def _run(self, send: Send) -> None:
        groups = tuple(submission.group for submission in self._submissions)
        failure: Exception = Unavailable("The call ended without a result; try again.")
        try:
            await send(groups, self._deliver)
        except Exception as error:
            failure = error
        finally:
            for submission in self._submissions:
                submission.resolve(failure)

    def _deliver(self, index: int, result: Result) -> None:
        self._submissions[index].resolve(result)


def _is_large(group: TextGroup) -> bool:
    texts = group.texts
    return len(texts) > _MAX_COALESCED_TEXTS or sum(map(len, texts)) > _MAX_COALESCED_CHARS
