"""Child processes that end with their parent, even if it is killed."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def die_with_parent(number: signal.Signals) -> Callable[[], None] | None:
    """Returns a `preexec_fn` that has the kernel signal the child when its parent thread ends.

    Returns None on systems other than Linux, which have no equivalent.
    """
    if sys.platform != "linux":
        return None
    prctl, parent_pid = ctypes.CDLL(None).prctl, os.getpid()

    def set_parent_death_signal() -> None:
        prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent_pid:  # it ended before the call
            os._exit(0)

    return set_parent_death_signal
