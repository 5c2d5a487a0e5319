"""Files in the user's cache folder that keep the speeds of models over restarts."""

import json
import logging
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from platformdirs import user_cache_path

from serve_app.atomic_file import write_atomically
from serve_app.engines.cpu_features import cpu_model
from serve_app.types import EngineInfo

logger = logging.getLogger(__name__)

#: Bump it when the meaning of the state changes.
_FORMAT = 1


class SpeedFile:
    """The speed of one model with one engine on one kind of machine."""

    def __init__(self, info: EngineInfo) -> None:
        """Selects the file by the model, its engine, precision and threads, and the CPU."""
        self._key: Mapping[str, Any] = {
            "format": _FORMAT,
            "space": info.space_id,
            "engine": info.engine,
            "device": info.device,
            "precision": info.precision,
            "threads": info.threads,
            "cpu": cpu_model(),
        }
        digest = sha256(json.dumps(self._key).encode()).hexdigest()[:16]
        folder = user_cache_path("embedserve") / "speeds"
        self._path = folder / f"{info.space_id}-{digest}.json"
        self._has_failed = False

    def read(self) -> Any:
        """Returns the state that was written last; None: there is none, or it is damaged."""
        try:
            content = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return None
        is_own = isinstance(content, dict) and content.get("key") == self._key
        return content.get("speed") if is_own else None

    def write(self, state: Mapping[str, Any]) -> None:
        """Replaces the file. The first failure is logged: speeds are then learned at each start."""
        content = json.dumps({"key": self._key, "speed": state}).encode()
        try:
            write_atomically(self._path, content)
        except OSError as error:
            if not self._has_failed:
                logger.warning(
                    "The speed of a model can't be kept in %s: %s. A new replica measures it "
                    "again. Make the user's cache folder writable, or free some space.",
                    self._path.parent,
                    error.strerror,
                )
            self._has_failed = True
