"""vLLM, if its command is installed."""

import shutil

from .base import OFFLINE_ENV, Peer, PeerProcess


def _command(process: PeerProcess) -> list[str]:
    return [
        *("vllm", "serve", str(process.model), "--runner", "pooling", "--served-model-name", "m"),
        *("--host", "127.0.0.1", "--port", str(process.port)),
    ]


PEER = Peer(
    name="vllm",
    title="vLLM",
    command=_command,
    model="m",
    env={**OFFLINE_ENV, "VLLM_NO_USAGE_STATS": "1"},
    unavailable_reason=lambda: None if shutil.which("vllm") else "no `vllm` on the PATH",
)
