import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.usage import Usage, process_tree
from serve_app.valkey.supervisor import supervisor_command

BUSY = "import time\nwhile time.process_time() < 1: pass\nprint('done', flush=True)\ntime.sleep(60)"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BUSY!r}])"


def test_the_cpu_time_of_a_child_counts_for_its_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        try:
            usage = Usage(parent.pid)
            start = time.perf_counter()
            assert parent.stdout is not None
            assert parent.stdout.readline() == b"done\n"
            wall_s = time.perf_counter() - start
            metrics = usage.metrics()
            cpu_s = metrics["server_cpu"] * wall_s
            assert cpu_s == pytest.approx(1.0, abs=0.3)
            (share,) = metrics["cpu_by_process"].values()
            assert share == pytest.approx(metrics["server_cpu"], abs=0.02)
            assert 0 < metrics["pss_mib"] <= metrics["rss_mib"]
        finally:
            processes = process_tree(parent.pid)
            for process in processes:
                process.kill()
            psutil.wait_procs(processes[1:], 10)


def test_the_cache_server_of_a_process_belongs_to_its_tree(tmp_path: Path) -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(sleep) as owner:
        # The command line of a supervisor, in a process that is no child of the owner.
        arguments = supervisor_command(tmp_path, owner.pid, tmp_path / "valkey-server")[1:]
        with subprocess.Popen([*sleep, *arguments]) as supervisor:
            try:
                assert [p.pid for p in process_tree(owner.pid)] == [owner.pid, supervisor.pid]
            finally:
                supervisor.kill()
                owner.kill()


def test_a_process_that_ended_uses_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    metrics = Usage(ended.pid).metrics()
    assert metrics["server_cpu"] == 0
    assert metrics["rss_mib"] == 0


def test_without_a_process_the_machine_is_measured() -> None:
    usage = Usage(None)
    sum(range(3_000_000))
    assert list(usage.metrics()) == ["machine_cpu"]
    assert usage.metrics()["machine_cpu"] > 0
