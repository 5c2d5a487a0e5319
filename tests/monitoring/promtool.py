"""Prometheus' own tools, where they are installed."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "configs" / "monitoring"
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="needs Prometheus (Debian: apt-get install prometheus)",
)


def promtool(*arguments: str | Path) -> str:
    """Runs promtool and returns its output; fails the test with it if promtool does."""
    completed = subprocess.run(
        ["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
    )
    output = completed.stdout + completed.stderr
    assert completed.returncode == 0, output
    return output
