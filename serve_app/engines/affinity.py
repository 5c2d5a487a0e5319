"""CPU affinity: each replica computes on CPUs of its own.

Ray counts CPUs but doesn't pin processes to them, so two replicas could share cores while others
idle. Each replica therefore takes one block of CPUs, chosen by its rank on the node.
"""

import os
from collections.abc import Set
from pathlib import Path

_TASKS = Path("/proc/self/task")


def available_cpus() -> frozenset[int]:
    """Returns the CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def choose_cpus(available: Set[int], count: int, local_rank: int) -> frozenset[int]:
    """Returns the `local_rank`-th block of `count` CPUs, wrapping around after the last CPU."""
    ordered = sorted(available)
    start = local_rank * count
    return frozenset(ordered[(start + i) % len(ordered)] for i in range(min(count, len(ordered))))


def pin_thread(cpus: Set[int]) -> None:
    """Pins the calling thread, and all threads it starts later. A no-op if the OS can't pin."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)


def move_threads(old: Set[int], new: Set[int]) -> None:
    """Pins every thread of this process that is pinned to `old` to `new` instead."""
    if not hasattr(os, "sched_setaffinity"):
        return
    for task in _TASKS.iterdir():
        try:
            if os.sched_getaffinity(int(task.name)) == old:
                os.sched_setaffinity(int(task.name), new)
        except ProcessLookupError:
            continue  # the thread has ended since it was listed
