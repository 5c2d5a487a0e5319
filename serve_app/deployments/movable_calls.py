"""The calls of this process that a router may take from their replicas and send to others."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from serve_app.types import TextGroup


class MovableCall:
    """A call in flight, which the current task waits for."""

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None, "Calls are made by tasks."
        self._task = task
        self._cancelled_before = task.cancelling()
        self._is_moved = False
        self.id: str | None = None  #: the router's; None: it isn't routed yet

    def move(self) -> bool:
        """Cancels the task's wait; returns whether this event loop can do that."""
        if self._task.get_loop() is not asyncio.get_running_loop():
            return False
        self._is_moved = True
        self._task.cancel()
        return True

    def is_to_be_sent_again(self) -> bool:
        """Returns whether the wait was cancelled by `move` only. Call it once, at its end."""
        return self._is_moved and self._task.uncancel() <= self._cancelled_before


class MovableCalls:
    """Finds calls in flight.

    Ray creates the router and gives it the id and the arguments of a call, but not the response
    that the caller waits for, and gives the caller no id.
    """

    def __init__(self) -> None:
        """Creates an empty collection."""
        self._by_groups: dict[int, MovableCall] = {}
        self._by_id: dict[str, MovableCall] = {}

    def __reduce__(self) -> str:
        # Ray pickles the class of a router by value, with the objects that its module refers to.
        return "MOVABLE_CALLS"

    @contextmanager
    def register(self, args: Sequence[Any]) -> Iterator[MovableCall]:
        """Makes a call movable as long as the context lasts, if it has groups of texts."""
        call, groups = MovableCall(), groups_of(args)
        if not groups:
            yield call
            return
        self._by_groups[id(groups)] = call
        try:
            yield call
        finally:
            del self._by_groups[id(groups)]
            if call.id is not None:
                del self._by_id[call.id]

    def identify(self, groups: tuple[TextGroup, ...], id_: str) -> None:
        """Notes the router's id of the call that has these very groups."""
        call = self._by_groups.get(id(groups))
        if call is not None:
            call.id = id_
            self._by_id[id_] = call

    def move(self, id_: str) -> bool:
        """Ends a call, so that its caller sends it again; returns whether it is in flight."""
        call = self._by_id.get(id_)
        return call is not None and call.move()


#: Of this process.
MOVABLE_CALLS = MovableCalls()


def groups_of(args: Sequence[Any]) -> tuple[TextGroup, ...]:
    """Returns the groups of texts among the arguments of a call; empty if it runs no model."""
    groups = args[1] if len(args) > 1 else None
    if isinstance(groups, tuple) and groups and isinstance(groups[0], TextGroup):
        return groups
    return ()


def resent(args: Sequence[Any]) -> Sequence[Any]:
    """Returns arguments whose groups tell the next replica that they are no new arrivals."""
    groups = groups_of(args)
    if not groups:
        return args
    return (args[0], tuple(replace(group, is_resent=True) for group in groups), *args[2:])
