"""CPU affinity: each replica computes on CPUs of its own.

Ray counts CPUs but doesn't pin processes to them, so two replicas could share cores while others
idle. Each replica therefore takes one block of CPUs, chosen by its rank on the node.
"""

import os
import platform
from collections.abc import Set
from pathlib import Path

from serve_app.engines.cpu_topology import CpuTopology, format_cpus
from serve_app.types import Placement

_TASKS = Path("/proc/self/task")


def available_cpus() -> frozenset[int]:
    """Returns the CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def choose_cpus(
    available: Set[int], count: int, index: int, topology: CpuTopology
) -> frozenset[int]:
    """Returns the `index`-th block of `count` CPUs, wrapping around after the last CPU.

    `CpuTopology.order` defines the blocks.
    """
    count = min(count, len(available))
    ordered = topology.order(available, count)
    return frozenset(ordered[(index * count + i) % len(ordered)] for i in range(count))


def describe_placement(cpus: Set[int]) -> Placement:
    """Returns the node and the CPUs of a process, as `/info` reports them."""
    numa_node = CpuTopology.read(cpus).numa_node(cpus)
    return Placement(platform.node(), format_cpus(cpus), numa_node)


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
