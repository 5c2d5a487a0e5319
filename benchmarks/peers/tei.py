"""Hugging Face's text-embeddings-inference, if its binary is installed."""

import shutil

from serve_app.command.ports import free_port

from .base import OFFLINE_ENV, Peer, PeerProcess

_PROGRAM = "text-embeddings-router"


def _command(process: PeerProcess) -> list[str]:
    return [
        *(_PROGRAM, "--model-id", str(process.model), "--dtype", "float32"),
        *("--hostname", "127.0.0.1", "--port", str(process.port)),
        *("--prometheus-port", str(free_port())),
    ]


PEER = Peer(
    name="tei",
    title="text-embeddings-inference",
    command=_command,
    dialect="tei",
    env=OFFLINE_ENV,
    unavailable_reason=lambda: None if shutil.which(_PROGRAM) else f"no `{_PROGRAM}` on the PATH",
)
