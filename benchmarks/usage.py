"""CPU and memory usage of a server's processes under load."""

import re
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import PurePath
from typing import Any

import psutil

from serve_app.command.process_tree import cache_servers

_REPLICA = re.compile(r"ray::ServeReplica:[^:]*:(\w+)")
_MIN_CORES = 0.01


def process_tree(pid: int) -> list[psutil.Process]:
    """Returns a process, its descendants and the cache servers that these started.

    A cache server runs under a daemon, which is no descendant. The list is empty if the process has
    ended.
    """
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        processes = [process, *process.children(recursive=True)]
        return list(dict.fromkeys([*processes, *cache_servers({p.pid for p in processes})]))
    return []


def pause(pid: int) -> None:
    """Suspends a process and its descendants (SIGSTOP), so that they use no CPU."""
    for process in process_tree(pid):
        with suppress(psutil.NoSuchProcess):
            process.suspend()


def resume(pid: int) -> None:
    """Resumes a process and its descendants (SIGCONT)."""
    for process in process_tree(pid):
        with suppress(psutil.NoSuchProcess):
            process.resume()


class Usage:
    """Measures CPU time from construction on, and memory when it is read."""

    def __init__(self, pid: int | None) -> None:
        """Starts to measure.

        Args:
            pid: the root of the process tree to measure; None measures the machine only.
        """
        self._pid = pid
        self._start = time.perf_counter()
        self._generator_start_s = _cpu_s(psutil.Process())
        self._machine_start_s = _machine_cpu_s()
        self._start_s = {p.pid: _cpu_s(p) for p in process_tree(pid)} if pid else {}

    def metrics(self) -> dict[str, Any]:
        """Returns the average CPU usage since the start, in cores, and the memory in MiB.

        Memory that processes share counts in full for each of them in `rss_mib`, and divided
        among them in `pss_mib` (Linux only).
        """
        wall_s = time.perf_counter() - self._start
        machine_s = _machine_cpu_s() - self._machine_start_s
        generator_s = _cpu_s(psutil.Process()) - self._generator_start_s
        if self._pid is None:
            return {"machine_cpu": round(machine_s / wall_s, 3)}
        cpu_s: defaultdict[str, float] = defaultdict(float)
        processes: Counter[str] = Counter()
        rss = pss = 0
        for process in process_tree(self._pid):
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                name = _process_name(process)
                cpu_s[name] += _cpu_s(process) - self._start_s.get(process.pid, 0.0)
                memory = process.memory_full_info()
                rss, pss = rss + memory.rss, pss + getattr(memory, "pss", 0)
                processes[name] += 1
        server_s = sum(cpu_s.values())
        return {
            "cpu_by_process": _top_processes({name: s / wall_s for name, s in cpu_s.items()}),
            "server_cpu": round(server_s / wall_s, 3),
            "elsewhere_cpu": round(max(0.0, machine_s - generator_s - server_s) / wall_s, 3),
            "rss_mib": round(rss / 2**20, 1),
            "pss_mib": round(pss / 2**20, 1),
            "processes": processes.total(),
            "replicas": processes.get("Embedder") or processes.get("EmbedServer"),
        }


def _top_processes(cores: Mapping[str, float]) -> dict[str, float]:
    """Sorts by usage, largest first, without processes that use less than 0.01 cores."""
    descending = sorted(cores.items(), key=lambda item: -item[1])
    return {name: round(share, 3) for name, share in descending if share >= _MIN_CORES}


def _cpu_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def _machine_cpu_s() -> float:
    times = psutil.cpu_times()
    # `nice` too: Ray lowers the priority of its workers, whose time Linux counts separately.
    kinds = ("user", "nice", "system", "irq", "softirq")
    return float(sum(getattr(times, kind, 0) for kind in kinds))


def _process_name(process: psutil.Process) -> str:
    """Returns the deployment of a Ray Serve replica, or the name of the program."""
    command = process.cmdline()[:1]
    if not command:
        return str(process.name())
    replica = _REPLICA.match(command[0])
    return replica.group(1) if replica else PurePath(command[0].split()[0]).name
