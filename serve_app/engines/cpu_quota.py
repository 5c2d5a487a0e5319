"""The CPU time that the cgroups of this process allow, as container runtimes limit it."""

import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_CGROUPS, _MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def read_cpu_quota(cgroups: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> float:
    """Returns the limit of CPU time as a number of CPUs; infinite if there is none.

    Args:
        cgroups: where cgroups are mounted, of version 1 or 2.
        membership: lists the cgroups of the process.
    """
    return min(_quotas(cgroups, _read(membership)), default=math.inf)


def _quotas(cgroups: Path, membership: str) -> Iterator[float]:
    """Yields the limit of each cgroup that has one: of the process, and of those around it."""
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        own = PurePosixPath(path.lstrip("/"))
        for relative in (own, *own.parents):
            if not controllers:
                values = _read(cgroups / relative / "cpu.max").split()
            elif "cpu" in controllers.split(","):
                folder = cgroups / "cpu" / relative
                values = [
                    _read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")
                ]
            else:
                continue
            # `max` and -1: no limit.
            if len(values) == 2 and all(value.isdigit() for value in values):
                yield int(values[0]) / int(values[1])


def _read(file: Path) -> str:
    """Returns the content of a file; nothing if it can't be read."""
    try:
        return file.read_text("utf-8")
    except OSError:
        return ""
