"""What one replica has counted, at one moment. Samples are picklable, and hold no text."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from serve_app.access.entrance import KeyLevel
from serve_app.cache.report import MemoryStats
from serve_app.live.shadow_sample import ShadowSample
from serve_app.scheduler.pool_sample import PoolSample
from serve_app.types import CacheState

#: The values of counters since the start of the process, by a metric's name and its tags' values.
#: Those of histograms have the suffixes of Prometheus' text format; the last tag of a bucket is its
#: upper bound, and `embedserve_request_duration_seconds` has no route.
NamedCounts = Mapping[tuple[str, tuple[str, ...]], float]


class ReplicaIdentity(NamedTuple):
    """Which process it is."""

    deployment: str
    replica: str  #: unique among the replicas of the service
    node: str  #: address or name of the machine


class ReplicaSample(NamedTuple):
    """The counts of a replica, from which two samples give rates, and its state."""

    identity: ReplicaIdentity
    pid: int
    taken_s: float  #: by a monotonic clock of the replica's machine
    uptime_s: float
    memory_bytes: int  #: resident
    counts: NamedCounts
    #: HTTP requests that run a model, in progress; None: the replica takes no HTTP requests.
    in_flight: int | None = None
    pool: PoolSample | None = None  #: None: the replica runs no models
    l1: MemoryStats | None = None  #: None: the replica doesn't cache
    cache: CacheState | None = None  #: of the shared server; None: the replica doesn't cache
    keys: Mapping[str, KeyLevel] = {}  #: by name
    shadows: Sequence[ShadowSample] = ()

    @property
    def takes_requests(self) -> bool:
        """Whether it takes HTTP requests."""
        return self.in_flight is not None
