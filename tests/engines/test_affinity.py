import os
import threading

import pytest

from serve_app.engines.affinity import available_cpus, choose_cpus, move_threads, pin_thread
from serve_app.engines.cpu_topology import CpuTopology


@pytest.mark.parametrize(
    ("available", "count", "rank", "chosen"),
    [
        ({0, 1, 2, 3}, 1, 0, {0}),
        ({0, 1, 2, 3}, 1, 3, {3}),
        ({0, 1, 2, 3}, 2, 1, {2, 3}),
        ({0, 1, 2, 3}, 2, 2, {0, 1}),  # more replicas than blocks: wraps around
        ({4, 9}, 1, 1, {9}),
        ({0, 1}, 8, 0, {0, 1}),
    ],
)
def test_each_replica_has_a_block_of_its_own(
    available: set[int], count: int, rank: int, chosen: set[int]
) -> None:
    assert choose_cpus(available, count, rank, CpuTopology()) == chosen


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this OS can't pin threads")
def test_a_pinned_thread_moves_and_others_stay() -> None:
    all_cpus = available_cpus()
    if len(all_cpus) < 2:
        pytest.skip("needs two CPUs")
    first, second = (frozenset({cpu}) for cpu in sorted(all_cpus)[:2])
    pinned, moved, seen = threading.Event(), threading.Event(), []

    def work() -> None:
        pin_thread(first)
        pinned.set()
        moved.wait(5)
        seen.append(available_cpus())

    thread = threading.Thread(target=work)
    thread.start()
    pinned.wait(5)
    move_threads(first, second)
    moved.set()
    thread.join()
    assert seen == [second]
    assert available_cpus() == all_cpus
