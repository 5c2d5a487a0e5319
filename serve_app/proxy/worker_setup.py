"""Lets Ray start HAProxy through the launcher.

Ray calls `use_launcher` in each of its Serve processes, because the configuration file names it as
their setup hook. A path could not stand in that file: it differs from machine to machine.
"""

import os
import shutil
import sys
from pathlib import Path


def use_launcher() -> None:
    """Names the launcher to Ray as HAProxy's binary, unless the operator has named another one."""
    launcher = shutil.which("embedserve-haproxy", path=str(Path(sys.executable).parent))
    launcher = launcher or shutil.which("embedserve-haproxy")
    if launcher is not None:
        os.environ.setdefault("RAY_SERVE_HAPROXY_BINARY_PATH", launcher)
