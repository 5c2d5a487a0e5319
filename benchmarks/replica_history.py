"""Watches a deployment on Ray: running and wanted replicas, and how long each takes to start."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

_INTERVAL_S = 0.5


@dataclass(frozen=True, slots=True)
class ReplicaSample:
    """Ray's view of a deployment at one moment."""

    time_s: float  #: Unix time
    running: int
    target: int
    routed: int | None = None  #: replicas that HAProxy sends to; None: it wasn't asked


@dataclass(slots=True)
class ReplicaHistory:
    """Samples of a deployment, and the start-up time of each replica that started meanwhile."""

    samples: list[ReplicaSample] = field(default_factory=list)
    #: By replica: when Ray started it and when it became ready, in Unix time. Not of the replicas
    #: in the first sample.
    starts: dict[str, tuple[float, float]] = field(default_factory=dict)
    _seen: set[str] = field(default_factory=set)

    @property
    def startup_s(self) -> list[list[float]]:
        """Start-up times of replicas while 0, 1, … others were starting, a list for each number.

        Of replicas that start together, the first one that is ready counts as the first.
        """
        by_others: list[list[float]] = []
        starts = sorted(self.starts.values(), key=lambda start: start[::-1])
        for i, (start_s, ready_s) in enumerate(starts):
            others = sum(other_s > start_s for _, other_s in starts[:i])
            by_others += [[] for _ in range(others + 1 - len(by_others))]
            by_others[others].append(ready_s - start_s)
        return by_others

    def by_second(
        self, started_s: float, seconds: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Returns the running and the wanted replicas of each second, arrays of shape (seconds,).

        Args:
            started_s: Unix time of the first second.
            seconds: how many.
        """
        times = [sample.time_s - started_s for sample in self.samples]
        at = np.searchsorted(times, np.arange(seconds) + 0.5).clip(0, len(times) - 1)
        running = np.array([sample.running for sample in self.samples], dtype=np.int64)
        target = np.array([sample.target for sample in self.samples], dtype=np.int64)
        return running[at], target[at]

    @property
    def reload_s(self) -> list[float]:
        """How long HAProxy took to send to as many replicas as ran for the first time."""
        delays = []
        first, most = self.samples[0].running, max(sample.running for sample in self.samples)
        for count in range(first + 1, most + 1):
            ready_s = self._reached_s([sample.running for sample in self.samples], count)
            routed_s = self._reached_s([sample.routed or 0 for sample in self.samples], count)
            if ready_s is not None and routed_s is not None:
                delays.append(max(routed_s - ready_s, 0.0))
        return delays

    def _reached_s(self, counts: list[int], count: int) -> float | None:
        """Returns when a number was reached, which was between two samples."""
        for (earlier, sample), reached in zip(pairwise(self.samples), counts[1:], strict=True):
            if reached >= count:
                return (earlier.time_s + sample.time_s) / 2
        return None

    def add(self, deployment: dict[str, Any], time_s: float, routed: int | None = None) -> None:
        """Adds Ray's description of the deployment, and the replicas that HAProxy sends to."""
        running = [r for r in deployment["replicas"] if r["state"] == "RUNNING"]
        for replica in running:
            if self.samples and replica["replica_id"] not in self._seen:
                # It became ready between two samples.
                ready_s = (self.samples[-1].time_s + time_s) / 2
                self.starts[replica["replica_id"]] = (replica["start_time_s"], ready_s)
            self._seen.add(replica["replica_id"])
        target = deployment["target_num_replicas"]
        self.samples.append(ReplicaSample(time_s, len(running), target, routed))


class ReplicaWatcher:
    """Fills a history in a thread, until the end of the block."""

    def __init__(
        self,
        application: Callable[[], dict[str, Any]],
        deployment: str,
        routed: Callable[[], int | None] = lambda: None,
    ) -> None:
        """Watches a deployment of Ray's description of an application.

        Args:
            application: returns the description.
            deployment: name of the deployment.
            routed: returns the number of replicas that HAProxy sends to.
        """
        self.history = ReplicaHistory()
        self._application, self._deployment, self._routed = application, deployment, routed
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> ReplicaHistory:
        self._thread.start()
        return self.history

    def __exit__(self, *exception: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(_INTERVAL_S):
            deployments = self._application().get("deployments", {})
            if self._deployment in deployments:
                self.history.add(deployments[self._deployment], time.time(), self._routed())
