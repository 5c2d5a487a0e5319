"""A replica runs out of memory: the kernel kills it, or refuses it more."""

import os
import resource
from contextlib import suppress
from pathlib import Path

from .fault import Fault, Scene

_CGROUPS = Path("/sys/fs/cgroup")
_MIB = 1 << 20
_LIMIT_BYTES = 8 * _MIB
_REPLICAS = {"separate": "Embedder", "colocated": "EmbedServer"}


class Killed(Fault):
    """The kernel kills a replica whose control group has no memory left."""

    name = "out-of-memory"
    description = "a replica with the engine gets a control group of 8 MiB: the kernel kills it"
    duration_s = 3.0

    def __init__(self) -> None:
        self._group: Path | None = None

    def inject(self, scene: Scene) -> None:
        """Moves a replica into a control group that has room for next to nothing.

        What it has allocated before counts for the group that it comes from.
        """
        process, *_ = scene.service.processes(_REPLICAS[scene.service.topology])
        parent, limit = _memory_controller()
        try:
            self._group = parent / f"embedserve-fault-{os.getpid()}"
            self._group.mkdir()
            (self._group / limit).write_text(str(_LIMIT_BYTES))
            (self._group / "cgroup.procs").write_text(str(process.pid))
        except OSError as error:
            raise RuntimeError(f"No control group can be created here: {error}") from error

    def heal(self, scene: Scene) -> None:
        """Removes the group.

        Raises:
            RuntimeError: the replica needed no memory, and lives.
        """
        if self._group is None:
            return
        survivors: list[str] = []
        with suppress(OSError):
            survivors = (self._group / "cgroup.procs").read_text().split()
            for pid in survivors:  # back to where it was
                (self._group.parent / "cgroup.procs").write_text(pid)
        with suppress(OSError):
            self._group.rmdir()
        self._group = None
        if survivors:
            raise RuntimeError("The replica allocated no memory.")


class Refused(Fault):
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


def _memory_controller() -> tuple[Path, str]:
    """Returns the group of this process, and the name of its groups' limit."""
    for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return _CGROUPS / "memory" / path.lstrip("/"), "memory.limit_in_bytes"
    return _CGROUPS, "memory.max"


FAULTS: list[Fault] = [Killed(), Refused()]
