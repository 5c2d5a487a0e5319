"""The progress of a job in a file next to its target, from which an interrupted job resumes."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from embedserve_client.errors import FileError


@dataclass(slots=True)
class Progress:
    """How far a job has advanced."""

    records: int = 0  #: read from the source and written or skipped
    offset: int = 0  #: of the next record in the source; see `Record.next_offset`
    record_number: int = 0  #: of the last record
    rows: int = 0  #: vectors written
    skipped: int = 0  #: records with an empty text
    truncated: int = 0  #: texts beyond the model's token limit
    space: str | None = None
    model: str = ""
    sink_state: dict[str, Any] = field(default_factory=dict)


class Journal:
    """Stores the progress of a job atomically."""

    def __init__(self, target: Path, job: dict[str, Any]) -> None:
        """Creates a journal without reading its file.

        Args:
            target: the job's output file.
            job: the properties that must be unchanged when the job resumes.
        """
        self._file = target.with_name(f"{target.name}.journal")
        self._job = job

    def read(self) -> Progress | None:
        """Returns the saved progress; None: there is none.

        Raises:
            FileError: the file is damaged, or belongs to another job.
        """
        try:
            content = json.loads(self._file.read_text("utf-8"))
            progress = Progress(**content["progress"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            raise FileError(f"{self._file} can't be read. Start over with --restart.") from None
        if content["job"] != json.loads(json.dumps(self._job)):
            raise FileError(
                f"{self._file} belongs to another job: its input or its options differ. Use "
                "another output file, or start over with --restart."
            )
        return progress

    def write(self, progress: Progress) -> None:
        """Saves the progress."""
        temporary = self._file.with_name(f"{self._file.name}.new")
        with temporary.open("w", encoding="utf-8") as file:
            json.dump({"job": self._job, "progress": asdict(progress)}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._file)

    def remove(self) -> None:
        """Deletes the saved progress."""
        self._file.unlink(missing_ok=True)
