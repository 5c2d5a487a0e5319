"""Samples of what a running service holds: memory, descriptors, threads, keys and files."""

import os
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import psutil
import redis

from ..service_processes import role

INTERVAL_S = 10.0
#: Folders of Ray within the service's folder, and the one of its logs within a session.
_RAY, _LOGS = "ray", "logs"
#: Of the file to which Valkey saves its keys, and which grows and shrinks with them.
_DUMP_SUFFIX = ".rdb"


class ProcessSample(NamedTuple):
    """A process at one moment; memory in bytes."""

    pid: int
    role: str
    age_s: float
    own: int  #: resident memory that no file backs: heap and stacks
    rss: int
    pss: int  #: 0 where the system doesn't tell
    descriptors: int
    threads: int


class FileCount(NamedTuple):
    """Files of a kind."""

    files: int
    size: int  #: bytes


class Sample(NamedTuple):
    """The service at one moment."""

    time_s: float  #: since the start of the load
    processes: tuple[ProcessSample, ...]
    files: Mapping[str, FileCount]  #: by kind: `service`, `dump` (Valkey's), `ray`, `ray logs`
    cache: Mapping[str, int]  #: of Valkey: `keys`, `expiring`, `bytes`, `expired`, `evicted`
    load_average: float


def sample_processes(processes: Iterable[psutil.Process]) -> tuple[ProcessSample, ...]:
    """Samples processes; one that ends meanwhile is left out."""
    samples = []
    for process in processes:
        with suppress(psutil.Error):
            samples.append(_sample_process(process))
    return tuple(samples)


def _sample_process(process: psutil.Process) -> ProcessSample:
    memory = process.memory_full_info()
    return ProcessSample(
        pid=process.pid,
        role=role(process),
        age_s=round(time.time() - process.create_time(), 1),
        own=memory.rss - memory.shared,
        rss=memory.rss,
        pss=getattr(memory, "pss", 0),
        descriptors=process.num_fds(),
        threads=process.num_threads(),
    )


def count_files(folder: Path) -> dict[str, FileCount]:
    """Counts the files, directories and sockets below a folder, by kind.

    Links are not followed.
    """
    counts = {kind: [0, 0] for kind in ("service", "dump", "ray", "ray logs")}
    for directory, names, files in os.walk(folder):
        parts = Path(directory).relative_to(folder).parts
        kind = "service"
        if parts[:1] == (_RAY,):
            kind = "ray logs" if _LOGS in parts else "ray"
        for name in (*names, *files):
            with suppress(OSError):
                status = os.lstat(os.path.join(directory, name))
                count = counts["dump" if name.endswith(_DUMP_SUFFIX) else kind]
                count[0] += 1
                count[1] += status.st_size
    return {kind: FileCount(files, size) for kind, (files, size) in counts.items()}


def read_cache(client: redis.Redis) -> dict[str, int]:
    """Returns what a Valkey server holds; keys that expire are those with a time to live."""
    info: dict[str, Any] = client.info()
    database = info.get("db0", {})
    return {
        "keys": database.get("keys", 0),
        "expiring": database.get("expires", 0),
        "bytes": info["used_memory"],
        "expired": info["expired_keys"],
        "evicted": info["evicted_keys"],
    }


class Source(Protocol):
    """A service that can be sampled."""

    def all_processes(self) -> Iterable[psutil.Process]:
        """Returns all processes of the service."""

    def file_counts(self) -> Mapping[str, FileCount]:
        """Counts the files of the service."""

    def cache_state(self) -> Mapping[str, int]:
        """Returns what the cache server holds; empty if it doesn't answer."""


class Sampler:
    """Takes a sample every ten seconds in a thread, until the end of the block."""

    def __init__(self, source: Source, interval_s: float = INTERVAL_S) -> None:
        """A sampler that hasn't started."""
        self.samples: list[Sample] = []
        self._source, self._interval_s = source, interval_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._start_s = 0.0

    def __enter__(self) -> Self:
        self._start_s = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopped.set()
        self._thread.join()

    def take(self) -> Sample:
        """Takes a sample now."""
        return Sample(
            round(time.monotonic() - self._start_s, 1),
            sample_processes(self._source.all_processes()),
            self._source.file_counts(),
            self._source.cache_state(),
            round(os.getloadavg()[0], 1),
        )

    def _run(self) -> None:
        due_s = self._start_s
        while not self._stopped.wait(max(0.0, due_s - time.monotonic())):
            self.samples.append(self.take())
            due_s += self._interval_s
