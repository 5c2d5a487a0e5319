"""Records: one measured run as one line of JSON, with everything needed to repeat it."""

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

from serve_app.engines.cpu_features import CpuFeatures, cpu_model

from .paths import RESULTS, ROOT

#: The packages that determine the speed.
_PACKAGES = ("embedserve", "ray", "torch", "sentence-transformers", "transformers", "numpy")
#: The instruction sets that determine the speed of matrix products, by their names in
#: `/proc/cpuinfo`: those of x86, then those of Arm.
_INSTRUCTION_SETS = (
    *("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_int8", "amx_bf16", "amx_fp16"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve"),
)

Record = dict[str, Any]


@cache
def machine_info() -> dict[str, Any]:
    """Returns the properties of this machine that affect speed."""
    flags = CpuFeatures.detect().flags
    return {
        "cpu": cpu_model(),
        "instruction_sets": [name for name in _INSTRUCTION_SETS if name in flags],
        "cores": len(psutil.Process().cpu_affinity() or []) or os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def default_precision() -> str:
    """Returns the precision that EmbedServe selects on this CPU."""
    can_bf16 = CpuFeatures.detect().unsupported_reason("bf16", "openvino") is None
    return "bf16" if can_bf16 else "fp32"


def make_record(parameters: Mapping[str, Any], metrics: Mapping[str, Any]) -> Record:
    """Returns the record of a run: its parameters and metrics, the machine and the versions."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "command": " ".join(["embedserve", *sys.argv[1:]]),
        "machine": machine_info(),
        "versions": {package: version(package) for package in _PACKAGES},
        **parameters,
        **metrics,
    }


def to_json(record: Record) -> str:
    """Returns a record as one line of JSON."""
    return orjson.dumps(record).decode()


def save_record(record: Record, folder: Path = RESULTS) -> Path:
    """Appends a record to the file of its day in a folder, and returns that file."""
    file = folder / f"{record['at'][:10]}.jsonl"
    append_record(file, record)
    return file


def append_record(file: Path, record: Record) -> None:
    """Appends a record to a file; creates the file and its folder if necessary."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as lines:
        lines.write(to_json(record) + "\n")


@cache
def _commit() -> str | None:
    """Returns the commit that is checked out, with `-dirty` if files differ from it."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or None
