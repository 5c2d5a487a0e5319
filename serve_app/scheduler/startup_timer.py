"""Measures how long a replica takes to start, by step."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import psutil

logger = logging.getLogger(__name__)

#: `process`: start of Python, imports, and what Ray does before it creates the replica; `check`:
#: the model files are those of the application; `load`: reads and compiles the models; `warm_up`:
#: runs each of them once; `other`: the rest.
StartupStep = Literal["process", "check", "load", "warm_up", "other"]

#: Up to this many times the CPU time of a process, its age is the time that it took to start.
_MAX_WALL_PER_CPU_TIME = 2.0


class StartupTimer:
    """Counts from the start of the process to the first vector.

    Ray may start a process ahead, which then waits for a replica. A process that waits uses no CPU,
    so its age before the timer is created counts up to a multiple of its CPU time.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Starts to count; `clock` returns monotonic seconds."""
        process = psutil.Process()
        times = process.cpu_times()
        age_s = max(time.time() - process.create_time(), 0.0)
        self._clock = clock
        self._created_s = clock()
        self._seconds: dict[str, float] = {
            "process": min(age_s, _MAX_WALL_PER_CPU_TIME * (times.user + times.system))
        }
        self._ready_s: float | None = None

    @contextmanager
    def step(self, name: StartupStep) -> Iterator[None]:
        """Adds the duration of the block to a step, until the replica is ready."""
        start_s = self._clock()
        yield
        if self._ready_s is None:
            self._seconds[name] = self._seconds.get(name, 0.0) + self._clock() - start_s

    def ready(self) -> None:
        """Ends the measurement and logs it."""
        self._ready_s = self._clock()
        counted_s = sum(s for name, s in self._seconds.items() if name != "process")
        self._seconds["other"] = max(self._ready_s - self._created_s - counted_s, 0.0)
        steps = ", ".join(f"{name} {seconds:.2f}" for name, seconds in self._seconds.items())
        logger.info("The replica is ready after %.2f s: %s.", self.total_s, steps)

    @property
    def steps(self) -> Mapping[str, float]:
        """The seconds of each step; empty until the replica is ready."""
        return {} if self._ready_s is None else self._seconds

    @property
    def total_s(self) -> float:
        """The seconds of all steps; 0 until the replica is ready."""
        return sum(self.steps.values())
