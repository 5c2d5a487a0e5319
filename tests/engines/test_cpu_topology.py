"""The CPUs of replicas, on machines that a folder like `/sys` describes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from serve_app.engines.affinity import choose_cpus
from serve_app.engines.cpu_topology import CpuTopology, format_cpus


def machine(folder: Path, nodes: Sequence[str], cores: Mapping[str, Sequence[int]]) -> Path:
    """Writes the CPUs of NUMA nodes, and of cores with several hyperthreads, as Linux does."""
    for number, cpus in enumerate(nodes):
        node = folder / f"node/node{number}"
        node.mkdir(parents=True)
        (node / "cpulist").write_text(f"{cpus}\n")
    (folder / "node").mkdir(exist_ok=True)
    (folder / "node/possible").write_text("0\n")  # a file of another kind
    for siblings, cpus_of_core in cores.items():
        for cpu in cpus_of_core:
            topology = folder / f"cpu/cpu{cpu}/topology"
            topology.mkdir(parents=True)
            (topology / "thread_siblings_list").write_text(f"{siblings}\n")
    return folder


def blocks(cpus: Sequence[int], count: int, system: Path, replicas: int) -> list[set[int]]:
    topology = CpuTopology.read(cpus, system)
    return [{*choose_cpus({*cpus}, count, i, topology)} for i in range(replicas)]


def test_physical_cores_are_taken_before_hyperthreads(tmp_path: Path) -> None:
    # Siblings are neighbors here, as on many AMD machines.
    system = machine(tmp_path, ["0-7"], {f"{i}-{i + 1}": (i, i + 1) for i in (0, 2, 4, 6)})
    assert blocks(range(8), 2, system, 4) == [{0, 2}, {4, 6}, {1, 3}, {5, 7}]
    assert blocks(range(8), 6, system, 1) == [{0, 2, 4, 6, 1, 3}]


def test_a_replica_stays_on_one_numa_node_and_neighbors_on_different_ones(tmp_path: Path) -> None:
    # Siblings are far apart here, as on many Intel machines.
    cores = {f"{i},{i + 8}": (i, i + 8) for i in range(8)}
    system = machine(tmp_path, ["0-3,8-11", "4-7,12-15"], cores)
    assert blocks(range(16), 4, system, 4) == [
        {0, 1, 2, 3},
        {4, 5, 6, 7},
        {8, 9, 10, 11},
        {12, 13, 14, 15},
    ]
    topology = CpuTopology.read(range(16), system)
    assert [topology.numa_node(cpus) for cpus in ({0, 8}, {12}, {3, 4}, {16})] == [0, 1, None, None]


def test_what_is_left_of_the_nodes_forms_the_last_replicas(tmp_path: Path) -> None:
    system = machine(tmp_path, ["0-2", "3-5"], {})
    assert blocks(range(6), 2, system, 4) == [{0, 1}, {3, 4}, {2, 5}, {0, 1}]
    assert blocks(range(6), 4, system, 1) == [{0, 1, 2, 3}]  # no node is large enough


def test_only_cpus_that_the_process_may_use_count(tmp_path: Path) -> None:
    system = machine(tmp_path, ["0-3", "4-7"], {"0,4": (0, 4), "1,5": (1, 5), "2,6": (2, 6)})
    # The first hyperthread of the core 0,4 belongs to another container.
    assert blocks((1, 4, 5, 6), 3, system, 1) == [{4, 5, 6}]
    assert blocks((1, 4, 5), 2, system, 1) == [{4, 5}]


@pytest.mark.parametrize("content", [b"", b"none\n", b"\xff"])
def test_a_machine_that_is_not_described_has_cores_of_one_node(
    content: bytes, tmp_path: Path
) -> None:
    assert blocks(range(4), 2, tmp_path / "missing", 3) == [{0, 1}, {2, 3}, {0, 1}]
    system = machine(tmp_path, ["0-3"], {})
    (system / "node/node0/cpulist").write_bytes(content)
    assert blocks(range(4), 2, system, 2) == [{0, 1}, {2, 3}]
    assert CpuTopology.read(range(4), system).numa_node({0}) is None


@pytest.mark.parametrize(
    ("cpus", "text"),
    [((3,), "3"), ((0, 1), "0-1"), ((8, 0, 3, 2, 1), "0-3,8"), ((0, 2, 4, 5), "0,2,4-5"), ((), "")],
)
def test_cpus_are_written_as_linux_lists_them(cpus: tuple[int, ...], text: str) -> None:
    assert format_cpus(cpus) == text
