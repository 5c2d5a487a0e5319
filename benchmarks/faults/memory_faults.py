"""A replica runs out of memory."""

import resource
from contextlib import suppress

from .fault import Fault, Scene

_MIB = 1 << 20
_REPLICAS = {"separate": "Embedder", "colocated": "EmbedServer"}


class MemoryLimit(Fault):
    """A replica's allocations fail."""

    name = "no-memory"
    description = "allocations of a replica with the engine fail (RLIMIT_AS), for 8 s"

    def inject(self, scene: Scene) -> None:
        """Limits the address space of a replica to what it has."""
        process, *_ = scene.service.processes(_REPLICAS[scene.service.topology])
        size = process.memory_info().vms
        self._limit(process.pid, size + _MIB)

    def heal(self, scene: Scene) -> None:
        """Removes the limit of replicas that still run."""
        for process in scene.service.processes(_REPLICAS[scene.service.topology]):
            self._limit(process.pid, resource.RLIM_INFINITY)

    def _limit(self, pid: int, size: int) -> None:
        with suppress(ProcessLookupError):
            _, hard = resource.prlimit(pid, resource.RLIMIT_AS)
            resource.prlimit(pid, resource.RLIMIT_AS, (size, hard))


FAULTS: list[Fault] = [MemoryLimit()]
