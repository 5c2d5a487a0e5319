"""The artifact cache: folders that are built once from a model and read by every later replica.

Each artifact is built in a process of its own, so that a replica never holds the libraries that the
build needs. A build fills a temporary folder, which is then renamed, so that an artifact is either
complete or absent. If several processes ask for one artifact, one builds it and the others wait.
"""

import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import orjson
from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from serve_app.errors import ConfigurationError

logger = logging.getLogger(__name__)

_MANIFEST = "digests.json"
_LOCK_TIMEOUT_S = 900.0
_PATH = re.compile(r"[^\s'\"]*[/\\][^\s'\"]+")
#: OpenVINO's converter sends telemetry to Intel unless it believes that it runs in CI.
_NO_TELEMETRY = {"CI": "true"}


@dataclass(frozen=True, slots=True)
class BuildStep:
    """How an artifact is built: `python -m <module> <arguments> <folder>`.

    The module fills the empty folder and calls `write_manifest` last.
    """

    description: str  #: of the artifact, for error messages
    module: str
    arguments: tuple[str, ...]


#: Fills an empty folder, or raises ConfigurationError.
Build = Callable[[BuildStep, Path], None]


def build_in_subprocess(step: BuildStep, folder: Path) -> None:
    """Runs a build step in a process of its own.

    Raises:
        ConfigurationError: the process failed; the message holds the last line it wrote.
    """
    process = subprocess.run(
        [sys.executable, "-m", step.module, *step.arguments, str(folder)],
        env={**os.environ, **_NO_TELEMETRY},
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        logger.warning("Building %s failed:\n%s", step.description, process.stderr)
        last_line = (process.stderr.strip().splitlines() or ["no error output"])[-1]
        message = _PATH.sub("…", last_line)  # it may reach clients
        raise ConfigurationError(f"Building {step.description} failed: {message}")


def get_or_build(name: str, step: BuildStep, *, build: Build = build_in_subprocess) -> Path:
    """Returns an artifact's folder in the user's cache; builds it if it's missing or damaged.

    Args:
        name: path below the cache folder.
        step: how the artifact is built.
        build: runs the step.

    Raises:
        ConfigurationError: the artifact can't be built; the message says why.
    """
    folder = user_cache_path("embedserve") / name
    try:
        if not _is_intact(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{folder}.lock", timeout=_LOCK_TIMEOUT_S):
                if not _is_intact(folder):
                    _rebuild(folder, step, build)
    except Timeout:
        raise ConfigurationError(
            f"Another process has been building {step.description} for {_LOCK_TIMEOUT_S:.0f} s."
        ) from None
    except OSError as error:
        raise ConfigurationError(
            f"The user's cache folder can't store {step.description}: {error.strerror}. Free some "
            "space, or make the folder writable."
        ) from error
    return folder


def write_manifest(folder: Path) -> None:
    """Records the digest of every file in a folder, which marks the artifact as complete."""
    digests = {file.name: _sha256(file) for file in folder.iterdir()}
    (folder / _MANIFEST).write_bytes(orjson.dumps(digests, option=orjson.OPT_INDENT_2))


def _rebuild(folder: Path, step: BuildStep, build: Build) -> None:
    """Builds an artifact next to its folder, then moves it there."""
    prefix = f"building-{folder.name}-"
    for abandoned in folder.parent.glob(f"{prefix}*"):  # by a killed process: the lock is held
        shutil.rmtree(abandoned, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=prefix) as temporary:
        result = Path(temporary) / "artifact"
        result.mkdir()
        build(step, result)
        if not _is_intact(result):
            raise ConfigurationError(
                f"Building {step.description} failed: `{step.module}` wrote no complete artifact."
            )
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(result, folder)


def _is_intact(folder: Path) -> bool:
    """Returns whether a folder has a manifest and every file in it is unchanged."""
    try:
        digests = orjson.loads((folder / _MANIFEST).read_bytes())
        return bool(digests) and all(_sha256(folder / name) == d for name, d in digests.items())
    except (OSError, ValueError, AttributeError):
        return False


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
