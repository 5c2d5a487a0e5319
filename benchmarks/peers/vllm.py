"""vLLM, where its command is installed."""

import shutil

from .base import OFFLINE, Peer, Place


def _command(at: Place) -> list[str]:
    return [
        *("vllm", "serve", str(at.model), "--runner", "pooling", "--served-model-name", "m"),
        *("--host", "127.0.0.1", "--port", str(at.port)),
    ]


PEER = Peer(
    name="vllm",
    title="vLLM",
    command=_command,
    model="m",
    env={**OFFLINE, "VLLM_NO_USAGE_STATS": "1"},
    missing=lambda: None if shutil.which("vllm") else "no `vllm` on the PATH",
)
