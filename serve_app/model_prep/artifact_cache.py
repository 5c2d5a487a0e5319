"""The artifact cache: folders that are built once from a model and read by every later replica.

Each artifact is built in a process of its own, so that a replica never holds the libraries that the
build needs. A build fills a temporary folder, which is then renamed, so that an artifact is either
complete or absent. If several processes ask for one artifact, one builds it and the others wait.
"""

import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from filelock import Timeout
from platformdirs import user_cache_path

from serve_app.errors import ConfigurationError
from serve_app.model_prep.artifact import Artifact
from serve_app.models.file_digests import FileDigests

logger = logging.getLogger(__name__)

#: Folders of the cache that hold artifacts.
_KINDS = ("prepared", "ranges")
_TEMPORARY_PREFIX = "building-"
_LOCK_TIMEOUT_S = 900.0
_BUILD_TIMEOUT_S = 3600.0
_PATH = re.compile(r"[^\s'\"]*[/\\][^\s'\"]+")


@dataclass(frozen=True, slots=True)
class BuildStep:
    """How an artifact is built: `python -m <module> <arguments> <folder>`.

    The module fills the empty folder and calls `write_manifest` last.
    """

    description: str  #: of the artifact, for error messages
    module: str
    arguments: tuple[str, ...]
    labels: Mapping[str, str] = field(default_factory=dict)  #: see `Artifact.labels`


#: Fills an empty folder, or raises ConfigurationError.
Build = Callable[[BuildStep, Path], None]


def build_in_subprocess(
    step: BuildStep, folder: Path, *, timeout_s: float = _BUILD_TIMEOUT_S
) -> None:
    """Runs a build step in a process of its own.

    Raises:
        ConfigurationError: the process failed, and the message holds the last line it wrote; or it
            took longer than `timeout_s` and was killed.
    """
    try:
        process = subprocess.run(
            [sys.executable, "-m", step.module, *step.arguments, str(folder)],
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        raise ConfigurationError(
            f"Building {step.description} took longer than {timeout_s:.0f} s."
        ) from None
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
    artifact = Artifact(_cache_folder() / name)
    if artifact.folder.exists():
        artifact.hold()  # before the check, so that nobody removes it afterwards
    try:
        if artifact.damage(FileDigests()):
            artifact.folder.parent.mkdir(parents=True, exist_ok=True)
            with artifact.lock.acquire(timeout=_LOCK_TIMEOUT_S):
                if artifact.damage():
                    _rebuild(artifact.folder, step, build)
                artifact.hold()
    except Timeout:
        raise ConfigurationError(
            f"Another process has been building {step.description} for {_LOCK_TIMEOUT_S:.0f} s."
        ) from None
    except OSError as error:
        raise ConfigurationError(
            f"The user's cache folder can't store {step.description}: {error.strerror}. Free some "
            "space, or make the folder writable."
        ) from error
    artifact.label(step.labels)
    return artifact.folder


def list_artifacts() -> list[Artifact]:
    """Returns all artifacts, the most recently used ones first."""
    folders = [folder for folder in _cache_folder().glob("*/*") if _is_artifact(folder)]
    return sorted(map(Artifact, folders), key=lambda artifact: -artifact.used_s)


def evict(max_bytes: int) -> None:
    """Removes the least recently used artifacts until all of them take up to `max_bytes`.

    Artifacts that a process builds or uses stay.
    """
    artifacts = list_artifacts()
    total = sum(artifact.size_bytes for artifact in artifacts)
    for artifact in reversed(artifacts):
        if total <= max_bytes:
            break
        model = artifact.labels.get("model", "unknown model")
        try:
            if not artifact.remove():
                continue
        except OSError as error:  # it isn't this user's
            logger.warning("Could not remove %s: %s", artifact.folder, error.strerror)
            continue
        total -= artifact.size_bytes
        logger.warning(
            "Removed %s (%s, %.0f MiB), not used recently: prepared models take more than "
            "`prepared_models_max_bytes`.",
            artifact.folder.name,
            model,
            artifact.size_bytes / (1 << 20),
        )


def _cache_folder() -> Path:
    return user_cache_path("embedserve")


def _is_artifact(folder: Path) -> bool:
    return (
        folder.is_dir()
        and folder.parent.name in _KINDS
        and not folder.name.startswith(_TEMPORARY_PREFIX)
    )


def _rebuild(folder: Path, step: BuildStep, build: Build) -> None:
    """Builds an artifact next to its folder, then moves it there."""
    prefix = f"{_TEMPORARY_PREFIX}{folder.name}-"
    for abandoned in folder.parent.glob(f"{prefix}*"):  # by a killed process: the lock is held
        shutil.rmtree(abandoned, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=prefix) as temporary:
        result = Artifact(Path(temporary) / "artifact")
        result.folder.mkdir()
        build(step, result.folder)
        if result.damage():
            raise ConfigurationError(
                f"Building {step.description} failed: `{step.module}` wrote no complete artifact."
            )
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(result.folder, folder)
