"""Measures how long a replica takes to start."""

import time

import psutil

#: Up to this many times the CPU time of a process, its age is the time that it took to start.
_MAX_WALL_PER_CPU_TIME = 2.0


class StartupTimer:
    """Counts from the start of the process to the first vector.

    Ray may start a process ahead, which then waits for a replica. A process that waits uses no CPU,
    so its age before the timer is created counts up to a multiple of its CPU time.
    """

    def __init__(self) -> None:
        process = psutil.Process()
        times = process.cpu_times()
        age_s = max(time.time() - process.create_time(), 0.0)
        self._before_s = min(age_s, _MAX_WALL_PER_CPU_TIME * (times.user + times.system))
        self._created_s = time.monotonic()

    def elapsed_s(self) -> float:
        """Returns the seconds until now."""
        return self._before_s + time.monotonic() - self._created_s
