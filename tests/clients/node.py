"""Node and npm as the tests have them: from the environment that pytest runs in."""

import os
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "clients" / "typescript"


def environment(**more: str) -> dict[str, str]:
    """Variables for a program that runs them."""
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "NO_UPDATE_NOTIFIER": "1",
        "npm_config_update_notifier": "false",
        "npm_config_fund": "false",
        "npm_config_audit": "false",
        **more,
    }


def npm(folder: Path, *words: str) -> str:
    """Runs npm, and gives what it prints."""
    done = subprocess.run(
        ["npm", *words],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, f"npm {' '.join(words)}:\n{done.stdout}\n{done.stderr}"
    return done.stdout
