"""Runs Node and npm from the virtual environment of pytest."""

import os
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "clients" / "typescript"


def environment(**more: str) -> dict[str, str]:
    """Returns environment variables with Node on the path, and `more`."""
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "NO_UPDATE_NOTIFIER": "1",
        "npm_config_update_notifier": "false",
        "npm_config_fund": "false",
        "npm_config_audit": "false",
        **more,
    }


def npm(directory: Path, *arguments: str) -> str:
    """Runs npm and returns its standard output."""
    process = subprocess.run(
        ["npm", *arguments],
        cwd=directory,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert process.returncode == 0, (
        f"npm {' '.join(arguments)}:\n{process.stdout}\n{process.stderr}"
    )
    return process.stdout
