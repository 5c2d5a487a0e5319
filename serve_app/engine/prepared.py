"""Prepared models: converted once, kept by space, loaded by every replica that starts later.

This half finds one and needs neither torch nor transformers; the half that makes one,
`prepare`, runs in a process of its own, so that a replica never carries what it needed.
"""

import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import orjson
from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from serve_app.config import ModelConfig
from serve_app.engine.parity import GATES, holds
from serve_app.errors import ConfigurationError, ParityFailed
from serve_app.models import ModelSpec
from serve_app.types import Parity

logger = logging.getLogger(__name__)

_ABOUT = "about.json"
_LOCK_TIMEOUT_S = 900.0
#: Of what lies in the folder; another one is prepared anew.
_FORMAT = 2
_PATH = re.compile(r"[^\s'\"]*[/\\][^\s'\"]+")
#: OpenVINO's converter reports its use to its makers unless it believes that it runs in CI.
_QUIET = {"CI": "true"}


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model in a folder, as OpenVINO reads it."""

    folder: Path
    parity: Parity


def prepared(config: ModelConfig, spec: ModelSpec, precision: str) -> Prepared:
    """The prepared model of a space; makes it first where there is none that is whole.

    Several processes may ask at once: one makes it, the others wait.

    Raises:
        ParityFailed: its vectors are too far from those of sentence-transformers.
        ConfigurationError: it can't be made; the message says why.
    """
    try:
        name = f"{spec.space_id}-openvino-{version('openvino')}-{_FORMAT}"
        found = _find_or_make(config, precision, user_cache_path("embedserve") / "prepared" / name)
    except PackageNotFoundError:
        raise ConfigurationError("OpenVINO isn't installed. Run `pip install openvino`.") from None
    except Timeout:
        raise ConfigurationError(
            f"Another process has been preparing {spec.name} for {_LOCK_TIMEOUT_S:.0f} s."
        ) from None
    except OSError as error:
        raise ConfigurationError(
            f"The prepared model of {spec.name} can't be kept in the user's cache folder: "
            f"{error.strerror}. Make room for it, or set `engine: torch`."
        ) from error
    if found is None:
        raise ConfigurationError(f"The prepared model of {spec.name} is broken as soon as made.")
    if not holds(found.parity):
        raise ParityFailed(
            f"With OpenVINO at {precision} the vectors of {spec.name} are only within cosine "
            f"{found.parity.cosine_min:.6f} of sentence-transformers; {GATES[precision]} is asked. "
            "Set `precision: fp32`, or `engine: torch`."
        )
    return found


def _find_or_make(config: ModelConfig, precision: str, folder: Path) -> Prepared | None:
    found = _read(folder)
    if found is None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock", timeout=_LOCK_TIMEOUT_S):
            found = _read(folder)
            if found is None:
                _make(config, precision, folder)
                found = _read(folder)
    return found


def describe(folder: Path, parity: Parity) -> None:
    """Writes down what lies in a folder, so that it can be trusted later. The last step."""
    digests = {file.name: _sha256(file) for file in folder.iterdir()}
    about = {"files": digests, "parity": asdict(parity)}
    (folder / _ABOUT).write_bytes(orjson.dumps(about, option=orjson.OPT_INDENT_2))


def _read(folder: Path) -> Prepared | None:
    """What lies there; None when it is missing, unfinished, or not what was written."""
    try:
        about = orjson.loads((folder / _ABOUT).read_bytes())
        whole = all(_sha256(folder / name) == digest for name, digest in about["files"].items())
        measured = about["parity"]
        if measured["cosine_min"] is None:  # JSON has no NaN
            measured["cosine_min"] = float("nan")
        return Prepared(folder, Parity(**measured)) if whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _make(config: ModelConfig, precision: str, folder: Path) -> None:
    """Prepares beside the folder and moves it there whole."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="making-") as making:
        place = Path(making) / "model"
        place.mkdir()
        command = [sys.executable, "-m", "serve_app.engine.prepare"]
        done = subprocess.run(
            [*command, config.model_dump_json(), precision, str(place)],
            env={**os.environ, **_QUIET},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            logger.warning("Preparing %s for OpenVINO failed:\n%s", config.name, done.stderr)
            last = (done.stderr.strip().splitlines() or ["no word of why"])[-1]
            told = _PATH.sub("…", last)  # this may reach clients
            raise ConfigurationError(f"Preparing {config.name} for OpenVINO failed: {told}")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(place, folder)


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
