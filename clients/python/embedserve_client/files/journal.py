"""What is needed to go on after an interruption, in one small file beside the target."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from embedserve_client.errors import FileError


@dataclass(slots=True)
class Progress:
    """How far a job has come."""

    records: int = 0  #: read and written, or left out
    at: int = 0  #: where the next record begins
    number: int = 0  #: of the last one
    rows: int = 0  #: vectors written
    skipped: int = 0  #: records without text
    truncated: int = 0  #: texts that were longer than the model takes
    space: str | None = None
    model: str = ""
    sink: dict[str, Any] = field(default_factory=dict)


class Journal:
    """Keeps a job's progress, written whole or not at all."""

    def __init__(self, target: Path, job: dict[str, Any]) -> None:
        """A journal beside `target`; `job` is all that must be the same to go on."""
        self._file = target.with_name(f"{target.name}.journal")
        self._job = job

    def read(self) -> Progress | None:
        """The progress of the job when it was interrupted; None: it wasn't.

        Raises:
            FileError: another job was.
        """
        try:
            kept = json.loads(self._file.read_text("utf-8"))
            progress = Progress(**kept["progress"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            raise FileError(f"{self._file} can't be read. Begin anew with --restart.") from None
        if kept["job"] != json.loads(json.dumps(self._job)):
            raise FileError(
                f"{self._file} is of another job: another input, or other options. Name another "
                "output, or begin anew with --restart."
            )
        return progress

    def write(self, progress: Progress) -> None:
        """Keeps it."""
        beside = self._file.with_name(f"{self._file.name}.new")
        with beside.open("w", encoding="utf-8") as file:
            json.dump({"job": self._job, "progress": asdict(progress)}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, self._file)

    def remove(self) -> None:
        """The job is done."""
        self._file.unlink(missing_ok=True)
