"""A request whose machine vanishes without a word is sent to another one."""

import json
import subprocess
import sys

import pytest

from benchmarks.machines import unavailable_reason
from tests.repo.source import ROOT


def test_a_request_outlives_its_machine_and_a_long_one_is_not_repeated() -> None:
    if reason := unavailable_reason():
        pytest.skip(f"Several machines can't be run here: {reason}.")
    done = subprocess.run(
        [sys.executable, "-m", "tests.proxy.machine_loss"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # The machine that remained answers its own request, which takes long, and the other one.
    assert json.loads(done.stdout) == {"answered_by": ["one", "one"], "asked": 2}
