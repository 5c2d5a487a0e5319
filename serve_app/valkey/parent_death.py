"""Processes that end with the one that started them, however that ends."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def die_with_parent(number: signal.Signals) -> Callable[[], None] | None:
    """For `preexec_fn`: the child gets the signal when the thread that starts it has ended.

    None where the system can't do that: only Linux can.
    """
    if sys.platform != "linux":
        return None
    prctl, mine = ctypes.CDLL(None).prctl, os.getpid()

    def prepare() -> None:
        prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != mine:  # it has ended already
            os._exit(0)

    return prepare
