"""What a peer is: how to install it, start it, and ask it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .environment import Environment
from serve_app.config import MINILM
from serve_app.models import model_dir


class PeerFailed(Exception):
    """The peer can't be measured; the message says why."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a peer runs on this machine."""

    python: str  #: of the peer's own environment, or of the project's
    port: int  #: to listen on; 0 for one that is asked over a pipe
    scratch: Path  #: an empty folder of its own, gone afterwards

    @property
    def model(self) -> Path:
        """The folder of the model that all peers serve."""
        return model_dir(MINILM)


@dataclass(frozen=True, slots=True)
class Peer:
    """A server, or a library in a process that reads texts from a pipe."""

    name: str  #: in records
    title: str  #: in tables and pictures
    command: Callable[[Place], list[str]]
    dialect: str = "openai"
    model: str = "all-MiniLM-L6-v2"
    env: Mapping[str, str] = field(default_factory=dict)
    #: What it needs beside this project's own packages; None: nothing.
    environment: Environment | None = None
    #: Why it can't run here: a program that isn't installed.
    missing: Callable[[], str | None] = lambda: None


#: For peers that find the model's files by themselves and must not ask a hub for them.
OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
