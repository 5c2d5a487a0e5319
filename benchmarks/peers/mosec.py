"""mosec with its dynamic batching, around sentence-transformers."""

from pathlib import Path

from serve_app.config import MINILM
from serve_app.models import model_dir

from .base import OFFLINE_ENV, Peer, PeerProcess
from .environment import Environment

_SERVER = Path(__file__).with_name("mosec_server.py")


def _command(process: PeerProcess) -> list[str]:
    return [
        # -P: or the modules next to the server would replace installed ones of the same name.
        *(process.python, "-P", str(_SERVER)),
        *("--address", "127.0.0.1", "--port", str(process.port)),
        *("--path", str(process.scratch / "sockets"), "--timeout", "60000"),
        *("--log-level", "warning"),
    ]


PEER = Peer(
    name="mosec",
    title="mosec + sentence-transformers",
    command=_command,
    env={**OFFLINE_ENV, "MODEL_FOLDER": str(model_dir(MINILM)), "PYTHONSAFEPATH": "1"},
    environment=Environment("mosec", Path(__file__).with_name("mosec.txt")),
)
