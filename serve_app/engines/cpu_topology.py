"""How the CPUs of a machine belong together: hyperthreads → cores → NUMA nodes."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

_SYSTEM = Path("/sys/devices/system")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True, slots=True)
class CpuTopology:
    """The NUMA node and the core of each CPU, as far as the OS describes them."""

    nodes: Mapping[int, int] = field(default_factory=dict)  #: CPU → NUMA node
    siblings: Mapping[int, frozenset[int]] = field(default_factory=dict)  #: CPU → CPUs of its core

    @classmethod
    def read(cls, cpus: Iterable[int], system: Path = _SYSTEM) -> Self:
        """Returns the topology of some CPUs, without nodes unless all CPUs are on one.

        Args:
            cpus: CPUs that this process may use; siblings are among them.
            system: the folder in which Linux describes the machine.
        """
        allowed = frozenset(cpus)
        nodes = {
            cpu: int(folder.name.removeprefix("node"))
            for folder in sorted(system.glob("node/node[0-9]*"))
            for cpu in _read_cpu_list(folder / "cpulist") & allowed
        }
        siblings = {
            cpu: _read_cpu_list(system / f"cpu/cpu{cpu}/topology/thread_siblings_list") & allowed
            for cpu in allowed
        }
        return cls(nodes if nodes.keys() == allowed else {}, siblings)

    def hyperthread(self, cpu: int) -> int:
        """Returns the position of a CPU on its core: 0 for the first hyperthread."""
        return sum(sibling < cpu for sibling in self.siblings.get(cpu, ()))

    def numa_node(self, cpus: Iterable[int]) -> int | None:
        """Returns the NUMA node of some CPUs; None: they are on several, or it is unknown."""
        nodes = {self.nodes.get(cpu) for cpu in cpus}
        return nodes.pop() if len(nodes) == 1 else None

    def order(self, cpus: Set[int], count: int) -> list[int]:
        """Returns CPUs so that each `count` in a row suit the threads of one process.

        They are on one NUMA node as long as one has `count` left. Blocks of first hyperthreads
        precede those with second ones, and neighboring blocks are on different nodes, so that
        the first processes share neither cores nor memory controllers.
        """
        by_node = defaultdict[int | None, list[int]](list)
        for cpu in sorted(cpus, key=lambda cpu: (self.hyperthread(cpu), cpu)):
            by_node[self.nodes.get(cpu)].append(cpu)
        blocks = list[tuple[int, int, list[int]]]()
        rest = list[int]()
        for node in by_node.values():
            whole = len(node) - len(node) % count
            for start in range(0, whole, count):
                block = node[start : start + count]
                blocks.append((max(map(self.hyperthread, block)), start, block))
            rest += node[whole:]
        blocks.sort()
        rest.sort(key=self.hyperthread)
        return [*(cpu for *_, block in blocks for cpu in block), *rest]


def format_cpus(cpus: Iterable[int]) -> str:
    """Returns CPUs as Linux lists them, such as `0-3,8`."""
    ranges = list[list[int]]()
    for cpu in sorted(cpus):
        if ranges and cpu == ranges[-1][-1] + 1:
            ranges[-1][1:] = [cpu]
        else:
            ranges.append([cpu])
    return ",".join("-".join(map(str, bounds)) for bounds in ranges)


def _read_cpu_list(file: Path) -> frozenset[int]:
    """Returns the CPUs in a file such as `0-3,8`; none if it can't be read."""
    try:
        text = file.read_text("ascii")
    except (OSError, UnicodeDecodeError):
        return frozenset()
    ranges = [(int(first), int(last or first)) for first, last in _RANGE.findall(text)]
    return frozenset(cpu for first, last in ranges for cpu in range(first, last + 1))
