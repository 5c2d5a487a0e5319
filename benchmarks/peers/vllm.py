"""vLLM's build for CPUs, with its defaults for embedding models."""

import subprocess
from pathlib import Path

from .base import OFFLINE_ENV, Peer, PeerProcess
from .environment import Environment

_VERSION = "0.32.0"
#: Requirements for images and sound, which are built for another torch and fail at the import.
_NOT_NEEDED = ("torchaudio", "torchcodec", "torchvision")


def _complete(environment: Path) -> None:
    """Makes the package start: it needs a name by which it recognizes its own build."""
    pip = [str(environment / "bin" / "python"), "-m", "pip", "uninstall", "--quiet", "--yes"]
    subprocess.run([*pip, *_NOT_NEEDED], check=True, capture_output=True, text=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    metadata = packages / f"vllm-{_VERSION}+cpu.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {_VERSION}+cpu\n")


_ENVIRONMENT = Environment("vllm", Path(__file__).with_name("vllm.txt"), _complete)


def _command(process: PeerProcess) -> list[str]:
    return [
        str(Path(process.python).with_name("vllm")),
        *("serve", str(process.model), "--runner", "pooling", "--served-model-name", "m"),
        # The default reserves 92 % of the memory, and the start fails if that isn't free.
        *("--dtype", "float32", "--gpu-memory-utilization", "0.1"),
        *("--host", "127.0.0.1", "--port", str(process.port)),
    ]


PEER = Peer(
    name="vllm",
    title="vLLM",
    command=_command,
    model="m",
    env={
        **OFFLINE_ENV,
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CACHE_ROOT": str(_ENVIRONMENT.folder / "cache"),
    },
    environment=_ENVIRONMENT,
)
