"""What is made once from a model, kept in a folder, and found by every replica that starts later.

A folder is made in a process of its own, so that a replica never carries what that needed, and
moved to its place whole. Several processes may ask at once: one makes it, the others wait.
"""

import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import orjson
from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from serve_app.errors import ConfigurationError

logger = logging.getLogger(__name__)

_DIGESTS = "digests.json"
_LOCK_TIMEOUT_S = 900.0
_PATH = re.compile(r"[^\s'\"]*[/\\][^\s'\"]+")
#: OpenVINO's converter reports its use to its makers unless it believes that it runs in CI.
_QUIET = {"CI": "true"}


@dataclass(frozen=True, slots=True)
class BuildStep:
    """How a folder is filled: `python -m <module> <arguments> <folder>`; it ends with `write_manifest`."""

    what: str  #: what will be in it, for errors
    module: str
    arguments: tuple[str, ...]


def get_or_build(name: str, recipe: BuildStep) -> Path:
    """The folder of that name in the user's cache; made first where there is none that is whole.

    Raises:
        ConfigurationError: it can't be made; the message says why.
    """
    folder = user_cache_path("embedserve") / name
    try:
        whole = _find_or_make(folder, recipe)
    except Timeout:
        raise ConfigurationError(
            f"Another process has been making {recipe.what} for {_LOCK_TIMEOUT_S:.0f} s."
        ) from None
    except OSError as error:
        raise ConfigurationError(
            f"The user's cache folder can't keep {recipe.what}: {error.strerror}. Make room for it."
        ) from error
    if not whole:
        raise ConfigurationError(f"Making {recipe.what} failed: it is broken as soon as made.")
    return folder


def write_manifest(folder: Path) -> None:
    """Writes down what lies in a folder, so that it can be trusted later. The last step."""
    digests = {file.name: _sha256(file) for file in folder.iterdir()}
    (folder / _DIGESTS).write_bytes(orjson.dumps(digests, option=orjson.OPT_INDENT_2))


def _find_or_make(folder: Path, recipe: BuildStep) -> bool:
    if _whole(folder):
        return True
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock", timeout=_LOCK_TIMEOUT_S):
        if not _whole(folder):
            _make(folder, recipe)
        return _whole(folder)


def _whole(folder: Path) -> bool:
    """Whether everything lies there as it was written."""
    try:
        digests = orjson.loads((folder / _DIGESTS).read_bytes())
        return bool(digests) and all(_sha256(folder / name) == d for name, d in digests.items())
    except (OSError, ValueError, AttributeError):
        return False


def _make(folder: Path, recipe: BuildStep) -> None:
    """Makes it beside its place and moves it there whole."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="making-") as making:
        place = Path(making) / "made"
        place.mkdir()
        done = subprocess.run(
            [sys.executable, "-m", recipe.module, *recipe.arguments, str(place)],
            env={**os.environ, **_QUIET},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            logger.warning("Making %s failed:\n%s", recipe.what, done.stderr)
            last = (done.stderr.strip().splitlines() or ["no word of why"])[-1]
            told = _PATH.sub("…", last)  # this may reach clients
            raise ConfigurationError(f"Making {recipe.what} failed: {told}")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(place, folder)


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
