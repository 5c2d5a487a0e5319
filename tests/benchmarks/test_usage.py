import subprocess
import sys
import time

import psutil
import pytest

from benchmarks.usage import Usage, process_tree

BUSY = "import time\nend = time.time() + 1.0\nwhile time.time() < end: pass\ntime.sleep(60)"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BUSY!r}])"


def test_the_cpu_time_of_a_child_counts_for_its_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT]) as parent:
        try:
            usage = Usage(parent.pid)
            start = time.perf_counter()
            time.sleep(2)
            metrics = usage.metrics()
            cpu_s = metrics["server_cpu"] * (time.perf_counter() - start)
            assert cpu_s == pytest.approx(1.0, abs=0.3)
            (share,) = metrics["cpu_by_process"].values()
            assert share == pytest.approx(metrics["server_cpu"], abs=0.02)
            assert 0 < metrics["pss_mib"] <= metrics["rss_mib"]
        finally:
            processes = process_tree(parent.pid)
            for process in processes:
                process.kill()
            psutil.wait_procs(processes[1:], 10)


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
