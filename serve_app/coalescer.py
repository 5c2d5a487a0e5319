"""Coalesces calls: what is submitted while calls are in flight is sent together in the next one."""

import asyncio
import contextvars
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from serve_app.errors import Unavailable

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Takes the index of an item in its call, and its result or error.
Deliver = Callable[[int, Result | Exception], None]
#: Makes the call for some items. Delivers the result of each as soon as it is known.
Send = Callable[[tuple[Item, ...], Deliver[Result]], Awaitable[None]]


class Submission(Generic[Item, Result]):
    """An item on its way."""

    __slots__ = ("_on_result", "batch", "call", "done", "item")

    def __init__(self, item: Item, on_result: Callable[[Result | Exception], None]) -> None:
        self.item = item
        self.done = False
        self.call: asyncio.Task[None] | None = None  #: None: not sent yet
        self.batch: Sequence[Submission[Item, Result]] = ()  #: those that share the call
        self._on_result = on_result

    def resolve(self, result: Result | Exception) -> None:
        """Passes the result on, unless the submission is done."""
        if not self.done:
            self.done = True
            self._on_result(result)

    def cancel(self) -> None:
        """Drops the result. A call whose submissions are all done is cancelled."""
        self.done = True
        if self.call is not None and all(submission.done for submission in self.batch):
            self.call.cancel()


class Coalescer(Generic[Item, Result]):
    """Sends items; those that arrive while calls are in flight are sent together in the next call.

    There is no timer: when fewer than `max_in_flight_calls` are in flight, the items of one turn of
    the event loop are sent at once.

    A call runs in an empty context, because Ray cancels calls by the context they were made in.
    """

    def __init__(
        self,
        send: Send[Item, Result],
        max_in_flight_calls: float,
        *,
        max_size: int,
        size: Callable[[Item], int] = lambda item: 1,
        min_split_size: int | None = None,
        full_calls_wait: bool = True,
    ) -> None:
        """A coalescer without calls.

        Args:
            send: makes a call. Items without a result get the error that it raises.
            max_in_flight_calls: further items wait.
            max_size: limit on the sizes of the items of a call. A larger item has its own call.
            size: of an item.
            min_split_size: a burst is split evenly over the calls that may be sent, but into none
                that are smaller than this; None: into calls that are as large as possible.
            full_calls_wait: whether items that fill a call wait too.
        """
        self.max_in_flight_calls = max_in_flight_calls
        self._send = send
        self._max_size = max_size
        self._size = size
        self._min_split_size = max_size if min_split_size is None else min_split_size
        self._full_calls_wait = full_calls_wait
        self._pending: deque[Submission[Item, Result]] = deque()
        self._calls = set[asyncio.Task[None]]()
        self._in_flight = 0  # without those of `submit_alone`
        self._dispatch_scheduled = False

    def submit(
        self, item: Item, on_result: Callable[[Result | Exception], None]
    ) -> Submission[Item, Result]:
        """Sends an item, now or with the next call, and passes its result to `on_result`."""
        submission: Submission[Item, Result] = Submission(item, on_result)
        self._pending.append(submission)
        if not self._dispatch_scheduled:
            self._dispatch_scheduled = True
            # After the other items of this turn of the loop.
            asyncio.get_running_loop().call_soon(self._dispatch)
        return submission

    def submit_alone(
        self, item: Item, on_result: Callable[[Result | Exception], None]
    ) -> Submission[Item, Result]:
        """Like `submit`, but at once and in a call of its own, beyond the limit if necessary."""
        submission: Submission[Item, Result] = Submission(item, on_result)
        self._start([submission], limited=False)
        return submission

    async def flush(self, timeout_s: float) -> None:
        """Waits until all calls have ended; after `timeout_s`, cancels them and drops the rest."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while self._calls or self._pending:
            left_s = deadline - asyncio.get_running_loop().time()
            if left_s <= 0:
                self._pending.clear()
                for call in self._calls:
                    call.cancel()
                return
            if self._calls:
                await asyncio.wait(self._calls, timeout=left_s)
            else:
                await asyncio.sleep(0)

    def _dispatch(self) -> None:
        self._dispatch_scheduled = False
        while self._pending and (
            self._in_flight < self.max_in_flight_calls
            or (not self._full_calls_wait and len(self._pending) >= self._max_size)
        ):
            if batch := self._next_batch():
                self._start(batch, limited=True)

    def _next_batch(self) -> list[Submission[Item, Result]]:
        # The calls of a burst are of one size, since they go to different replicas.
        free = max(self.max_in_flight_calls - self._in_flight, 1)
        even_size = math.ceil(len(self._pending) / free)
        max_size = min(max(even_size, self._min_split_size), self._max_size)
        batch: list[Submission[Item, Result]] = []
        batch_size = 0
        while self._pending:
            submission = self._pending[0]
            if not submission.done:
                batch_size += self._size(submission.item)
                if batch and batch_size > max_size:
                    break
                batch.append(submission)
            self._pending.popleft()
        return batch

    def _start(self, batch: Sequence[Submission[Item, Result]], *, limited: bool) -> None:
        call = asyncio.get_running_loop().create_task(
            self._call(batch), context=contextvars.Context()
        )
        for submission in batch:
            submission.call, submission.batch = call, batch
        self._in_flight += limited
        self._calls.add(call)

        def on_call_done(call: asyncio.Task[None]) -> None:
            self._calls.discard(call)
            self._in_flight -= limited
            self._dispatch()

        call.add_done_callback(on_call_done)

    async def _call(self, batch: Sequence[Submission[Item, Result]]) -> None:
        failure: Exception = Unavailable("The call ended without a result; try again.")
        try:
            await self._send(
                tuple(submission.item for submission in batch),
                lambda index, result: batch[index].resolve(result),
            )
        except Exception as error:
            failure = error
        finally:
            for submission in batch:
                submission.resolve(failure)
