"""What a server costs while it is under load: CPU and memory of each of its processes."""

import re
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import PurePath
from typing import Any

import psutil

_REPLICA = re.compile(r"ray::ServeReplica:[^:]*:(\w+)")


def family(pid: int) -> list[psutil.Process]:
    """A process and everything below it; nothing when it has ended."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def pause(pid: int) -> None:
    """Stops a process and everything below it (SIGSTOP), so that it takes no time from others."""
    for process in family(pid):
        with suppress(psutil.NoSuchProcess):
            process.suspend()


def resume(pid: int) -> None:
    """Lets it go on."""
    for process in family(pid):
        with suppress(psutil.NoSuchProcess):
            process.resume()


class Usage:
    """Measures from when it is made."""

    def __init__(self, pid: int | None) -> None:
        """Measures the process `pid` and its children; with None, the machine as a whole only."""
        self._pid = pid
        self._since = time.perf_counter()
        self._own = _cpu_s(psutil.Process())
        self._all = _busy_s()
        self._before = {p.pid: _cpu_s(p) for p in family(pid)} if pid else {}

    def figures(self) -> dict[str, Any]:
        """CPU in cores, on average since the start; memory in MiB.

        Of memory that processes share, `rss_mib` counts the whole for each of them, `pss_mib`
        (Linux only) the part that falls to each.
        """
        wall = time.perf_counter() - self._since
        all_s, own_s = _busy_s() - self._all, _cpu_s(psutil.Process()) - self._own
        if self._pid is None:
            return {"machine_cpu": round(all_s / wall, 3)}
        cpu: defaultdict[str, float] = defaultdict(float)
        processes: Counter[str] = Counter()
        rss = pss = 0
        for process in family(self._pid):
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                name = _name(process)
                cpu[name] += _cpu_s(process) - self._before.get(process.pid, 0.0)
                memory = process.memory_full_info()
                rss, pss = rss + memory.rss, pss + getattr(memory, "pss", 0)
                processes[name] += 1
        server_s = sum(cpu.values())
        return {
            "cpu_by_process": _rounded({name: s / wall for name, s in cpu.items()}),
            "server_cpu": round(server_s / wall, 3),
            "elsewhere_cpu": round(max(0.0, all_s - own_s - server_s) / wall, 3),
            "rss_mib": round(rss / 2**20, 1),
            "pss_mib": round(pss / 2**20, 1),
            "replicas": processes.get("Embedder"),
        }


def _rounded(cores: Mapping[str, float]) -> dict[str, float]:
    """The largest first; what takes less than a hundredth of a core isn't told."""
    largest = sorted(cores.items(), key=lambda item: -item[1])
    return {name: round(share, 3) for name, share in largest if share >= 0.01}


def _cpu_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def _busy_s() -> float:
    times = psutil.cpu_times()
    # `nice` too: Ray runs its workers with less priority, which Linux counts apart.
    kinds = ("user", "nice", "system", "irq", "softirq")
    return float(sum(getattr(times, kind, 0) for kind in kinds))


def _name(process: psutil.Process) -> str:
    """The replica's deployment, or the name of the program."""
    title = process.cmdline()[:1]
    if not title:
        return str(process.name())
    replica = _REPLICA.match(title[0])
    return replica.group(1) if replica else PurePath(title[0].split()[0]).name
