import subprocess
import sys
import time

import pytest

from benchmarks.usage import Usage

BURNS = "import time\nend = time.time() + 1.0\nwhile time.time() < end: pass\ntime.sleep(60)"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BURNS!r}])"


def test_what_a_child_burns_is_its_parents_cost() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], start_new_session=True) as parent:
        try:
            usage = Usage(parent.pid)
            begin = time.perf_counter()
            time.sleep(2)
            figures = usage.figures()
            burnt_s = figures["server_cpu"] * (time.perf_counter() - begin)
            assert burnt_s == pytest.approx(1.0, abs=0.3)
            (share,) = figures["cpu_by_process"].values()
            assert share == pytest.approx(figures["server_cpu"], abs=0.02)
            assert 0 < figures["pss_mib"] <= figures["rss_mib"]
        finally:
            subprocess.run(["pkill", "-KILL", "-g", str(parent.pid)], check=True)


def test_a_process_that_ended_costs_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    figures = Usage(ended.pid).figures()
    assert figures["server_cpu"] == 0
    assert figures["rss_mib"] == 0


def test_without_a_process_only_the_machine_is_told() -> None:
    usage = Usage(None)
    sum(range(3_000_000))
    assert list(usage.figures()) == ["machine_cpu"]
    assert usage.figures()["machine_cpu"] > 0
