"""How tests are distributed over processes, and which of them `--fast` skips.

A run of all tests uses two processes, because tests of a service mostly wait. One process runs the
tests on Ray, the other runs those of standalone services and the remaining folders: two Rays at
once need more than two cores. Tests marked `exclusive` run alone: the other process pauses. A run
of named files or tests uses one process, so that its output and a debugger are usable; so does
`-n 0`.

`--fast` skips the paths below without importing them: they need Ray, a real model, a large library
or other people's clients, start and stop processes, or send thousands of requests. It runs all
other tests, so new ones are included, with fewer random examples. Three processes take one file
after another: tests that wait leave the cores to the others, and all end at about the same time.
"""

import fcntl
import os
import signal
from collections.abc import Generator
from pathlib import Path

import hypothesis
import pytest
from xdist.scheduler import LoadScopeScheduling

_ON_RAY = "tests/on_ray/"
_SLOW_PATHS = (
    "tests/access/test_shared_ledger.py",
    "tests/benchmarks",
    "tests/cache/test_bound.py",
    "tests/cache/test_faults.py",
    "tests/cache/test_redis_store.py",
    "tests/clients",
    "tests/command/test_capacity.py",
    "tests/command/test_check.py",
    "tests/command/test_installed_command.py",
    "tests/command/test_precision_comparison.py",
    "tests/command/test_ray_service.py",
    "tests/command/test_run.py",
    "tests/command/test_service_process.py",
    "tests/command/test_simulate.py",
    "tests/command/test_supervision.py",
    "tests/console",
    "tests/deployments/test_replica_keepalive.py",
    "tests/deployments/test_replica_log.py",
    "tests/embedserve_client/test_command.py",
    "tests/embedserve_client/test_embedder_service.py",
    "tests/embedserve_client/test_extras.py",
    "tests/embedserve_client/test_ipc.py",
    "tests/embedserve_client/test_local_model.py",
    "tests/embedserve_client/test_migration.py",
    "tests/embedserve_client/test_pgvector.py",
    "tests/embedserve_client/test_ray.py",
    "tests/embedserve_client/test_sentence_transformer.py",
    "tests/embedserve_client/test_stdio.py",
    "tests/embedserve_client/test_supervised_standalone.py",
    "tests/embedserve_client/test_supervisor.py",
    "tests/engines/test_former_layouts.py",
    "tests/engines/test_kinds.py",
    "tests/engines/test_openvino_engine.py",
    "tests/engines/test_parity.py",
    "tests/engines/test_static_model.py",
    "tests/engines/test_torch_engine.py",
    "tests/engines/test_untrusted_weights.py",
    "tests/model_prep/test_artifact.py",
    "tests/model_prep/test_engine_selection.py",
    "tests/model_prep/test_int8_export.py",
    "tests/model_prep/test_openvino_export.py",
    "tests/model_prep/test_prepared_model.py",
    "tests/model_prep/test_quantization_ranges.py",
    "tests/monitoring/test_queries.py",
    "tests/on_ray",
    "tests/providers",
    "tests/proxy/test_guard.py",
    "tests/proxy/test_launcher.py",
    "tests/proxy/test_machine_loss.py",
    "tests/proxy/test_smuggling.py",
    "tests/repo/test_extras.py",
    "tests/repo/test_imports.py",
    "tests/repo/test_report.py",
    "tests/service/test_image_fetcher.py",
    "tests/simulation",
    "tests/standalone/test_command.py",
    "tests/standalone/test_cost.py",
    "tests/standalone/test_fallback.py",
    "tests/standalone/test_hang.py",
    "tests/standalone/test_int8.py",
    "tests/standalone/test_live.py",
    "tests/standalone/test_many_models.py",
    "tests/standalone/test_provider_kinds.py",
    "tests/standalone/test_providers.py",
    "tests/standalone/test_service.py",
    "tests/standalone/test_top.py",
    "tests/standalone/test_tracing.py",
    "tests/test_hub_model.py",
    "tests/test_model_kinds.py",
    "tests/test_quantization.py",
    "tests/valkey/test_embedded.py",
    "tests/web/dialects/test_edge_values.py",
    "tests/web/schema/test_openapi.py",
    "tests/web/test_fuzz.py",
    "tests/web/test_schemathesis.py",
)

# huggingface_hub reads these when it is imported. Without them it sends telemetry once a day.
os.environ |= {"DO_NOT_TRACK": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
# Other load on the cores makes examples slow.
hypothesis.settings.register_profile(
    "embedserve",
    hypothesis.settings.default,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("embedserve")
#: Examples of each property with `--fast`; without it, as many as by default: 100.
_FAST_EXAMPLES = 20

# Threads of torch that wait sleep, instead of using the cores that the other process needs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell without job control ignores SIGINT in background jobs. Child processes would inherit
    # that, and Ctrl-C would not stop them.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    if config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
        return 0
    return 3 if config.getoption("fast") else 2


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="skip slow tests")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("fast"):
        profile = hypothesis.settings.get_profile("embedserve")
        hypothesis.settings.register_profile("fast", profile, max_examples=_FAST_EXAMPLES)
        hypothesis.settings.load_profile("fast")
    config.addinivalue_line("markers", "exclusive: other load on the cores changes its results")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    path = collection_path.relative_to(config.rootpath).as_posix()
    return True if config.getoption("fast") and path in _SLOW_PATHS else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts the tests on Ray to the front.

    Tests with a Ray cluster of their own come before those that share the fixture `service`, which
    is started once for each topology. Exclusive tests of a topology come last.
    """
    items.sort(
        key=lambda item: (
            not item.nodeid.startswith(_ON_RAY),
            "service" in getattr(item, "fixturenames", ()),
            _topology(item),
            _is_exclusive(item),
        )
    )


def _topology(item: pytest.Item) -> str:
    """Returns the topology of a test that shares `service`."""
    callspec = getattr(item, "callspec", None)
    return str(callspec.params.get("service", "")) if callspec else ""


@pytest.hookimpl(tryfirst=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadScopeScheduling:
    return _FolderScheduling(config, log)


class _FolderScheduling(LoadScopeScheduling):
    """Runs each folder of tests in one process, because its tests share what they have loaded.

    Tests of standalone services in the folder of the tests on Ray are a scope of their own. So is
    each file with `--fast`, whose tests load little.
    """

    def _split_scope(self, nodeid: str) -> str:
        path, _, test = nodeid.partition("::")
        if self.config.getoption("fast"):
            return path
        folder = path.rpartition("/")[0]
        needs_no_ray = f"{folder}/" == _ON_RAY and "standalone" in test.partition("[")[2]
        return f"{folder} standalone" if needs_no_ray else folder


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, object, object]:
    if not hasattr(item.config, "workerinput"):
        return (yield)
    _MACHINE_LOCK.acquire(exclusive=_is_exclusive(item))
    try:
        return (yield)
    finally:
        if nextitem is None or not (_is_exclusive(item) and _is_exclusive(nextitem)):
            _MACHINE_LOCK.release()


def _is_exclusive(item: pytest.Item) -> bool:
    return item.get_closest_marker("exclusive") is not None


class _MachineLock:
    """A fair read-write lock between the processes of a test run, by locks on two folders."""

    def __init__(self, queue: Path, machine: Path) -> None:
        self._queue = os.open(queue, os.O_RDONLY)
        self._machine = os.open(machine, os.O_RDONLY)
        self._is_exclusive = False

    def acquire(self, *, exclusive: bool) -> None:
        if self._is_exclusive:
            return  # kept between consecutive exclusive tests
        # A writer that waits holds the queue, or readers would acquire the lock again and again.
        fcntl.flock(self._queue, fcntl.LOCK_EX)
        try:
            fcntl.flock(self._machine, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        finally:
            fcntl.flock(self._queue, fcntl.LOCK_UN)
        self._is_exclusive = exclusive

    def release(self) -> None:
        fcntl.flock(self._machine, fcntl.LOCK_UN)
        self._is_exclusive = False


_MACHINE_LOCK = _MachineLock(Path(__file__).parent, Path(__file__).parent / "on_ray")
