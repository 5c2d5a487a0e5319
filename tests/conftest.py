"""A run of everything takes two processes, since waiting is most of what tests of a service do.

One has the tests that start a service or measure, one after the other; the other process has the
rest, folder by folder, which computes, and pauses while a test must have the machine to itself. Who
names files or tests gets one process, whose output and debugger are at hand; so does `-n 0`.
"""

import fcntl
import os
import signal
from collections.abc import Generator
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

_ON_RAY = "tests/on_ray/"
_BENCHMARKS = "tests/benchmarks/"
#: What is asserted here comes out otherwise when something else wants the cores.
_ALONE = (_ON_RAY + "test_faults.py", _ON_RAY + "test_served.py")

# Read when huggingface_hub is imported, which most folders do: else the first test of a day to use
# it asks its makers' server for something.
os.environ |= {"DO_NOT_TRACK": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
# Of torch: threads that wait for one another sleep, and leave the cores to what runs beside them.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # As in the background of a shell without job control. What the tests start would inherit it,
    # and be killed after a long patience where Ctrl-C should have ended it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    return 2 if config.args_source is pytest.Config.ArgsSource.TESTPATHS else 0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On Ray first what has one of its own, while the one that is shared doesn't run.

    Then what may have company, so that the other process is nearly through when it has to pause.
    """
    items.sort(
        key=lambda item: (
            not item.nodeid.startswith(_ON_RAY),
            "service" in getattr(item, "fixturenames", ()),
            _alone(item),
        )
    )


@pytest.hookimpl(tryfirst=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadScopeScheduling:
    return _InTwo(config, log)


class _InTwo(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        if nodeid.startswith((_ON_RAY, _BENCHMARKS)):
            return "services"
        return nodeid.split("/")[1]  # a folder of tests shares what it has loaded


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, object, object]:
    if not hasattr(item.config, "workerinput"):
        return (yield)
    _MACHINE.take(alone=_alone(item))
    try:
        return (yield)
    finally:
        if nextitem is None or not (_alone(item) and _alone(nextitem)):
            _MACHINE.give_back()


def _alone(item: pytest.Item) -> bool:
    return item.nodeid.startswith(_ALONE)


class _Machine:
    """Of the processes that run tests all have it, or one does. Locks nothing but two folders."""

    def __init__(self, queue: Path, place: Path) -> None:
        self._queue = os.open(queue, os.O_RDONLY)
        self._place = os.open(place, os.O_RDONLY)
        self._mine_alone = False

    def take(self, *, alone: bool) -> None:
        if self._mine_alone:
            return  # who queues now waits for this process
        # Who wants it alone keeps the others queueing, or they would take it again and again.
        fcntl.flock(self._queue, fcntl.LOCK_EX)
        try:
            fcntl.flock(self._place, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        finally:
            fcntl.flock(self._queue, fcntl.LOCK_UN)
        self._mine_alone = alone

    def give_back(self) -> None:
        fcntl.flock(self._place, fcntl.LOCK_UN)
        self._mine_alone = False


_MACHINE = _Machine(Path(__file__).parent, Path(__file__).parent / "on_ray")
