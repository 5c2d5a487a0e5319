"""Hugging Face's text-embeddings-inference, where its binary is installed."""

import shutil

from .base import OFFLINE, Peer, Place
from serve_app.command.serve import free_port

_PROGRAM = "text-embeddings-router"


def _command(at: Place) -> list[str]:
    return [
        *(_PROGRAM, "--model-id", str(at.model), "--dtype", "float32"),
        *("--hostname", "127.0.0.1", "--port", str(at.port)),
        *("--prometheus-port", str(free_port())),
    ]


PEER = Peer(
    name="tei",
    title="text-embeddings-inference",
    command=_command,
    dialect="tei",
    env=OFFLINE,
    missing=lambda: None if shutil.which(_PROGRAM) else f"no `{_PROGRAM}` on the PATH",
)
