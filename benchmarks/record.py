"""One run as one line of JSON: where, when, of what, how, and what came out."""

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson
import psutil

RESULTS = Path(__file__).parent / "results"

#: What decides how fast we are.
_PACKAGES = ("embedserve", "ray", "torch", "sentence-transformers", "transformers", "numpy")


@cache
def machine() -> dict[str, Any]:
    """What this machine is, as far as it bears on speed."""
    return {
        "cpu": _cpu(),
        "cores": len(psutil.Process().cpu_affinity() or []) or os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def record(asked: Mapping[str, Any], figures: Mapping[str, Any]) -> dict[str, Any]:
    """A run's record: figures beside everything that one needs to repeat it."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "command": " ".join(["embedserve", *sys.argv[1:]]),
        "machine": machine(),
        "versions": {package: version(package) for package in _PACKAGES},
        **asked,
        **figures,
    }


def line(entry: Mapping[str, Any]) -> str:
    """The record as one line of JSON."""
    return orjson.dumps(entry).decode()


def keep(entry: Mapping[str, Any]) -> Path:
    """Appends a record to the file of its day; the file."""
    file = RESULTS / f"{entry['at'][:10]}.jsonl"
    append(file, entry)
    return file


def append(file: Path, entry: Mapping[str, Any]) -> None:
    """Appends a record to a file, which need not exist."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as lines:
        lines.write(line(entry) + "\n")


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    names = [row.partition(":")[2].strip() for row in text.splitlines() if "model name" in row]
    return names[0] if names else platform.processor()


@cache
def _commit() -> str | None:
    """The commit that is checked out, marked when files differ from it."""
    asked = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return asked.stdout.strip() or None
