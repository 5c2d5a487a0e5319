"""The command `embedserve` as a user starts it."""

import subprocess
import sys
from pathlib import Path

import pytest

from serve_app import __version__


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["serve", "--help"]])
def test_the_installed_command_has_help(arguments: list[str]) -> None:
    command = Path(sys.executable).parent / "embedserve"
    output = subprocess.run([command, *arguments], capture_output=True, text=True, check=True)
    assert __version__ in output.stdout or "usage: embedserve" in output.stdout
