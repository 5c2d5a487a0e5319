"""The description of a peer: how to install, start and call it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from serve_app.config import MINILM
from serve_app.models import model_dir

from .environment import Environment


class PeerError(Exception):
    """A peer can't be measured; the message gives the reason."""


@dataclass(frozen=True, slots=True)
class PeerProcess:
    """The parameters of a peer's process, from which it builds its command line."""

    python: str  #: the interpreter of the peer's environment
    port: int  #: to listen on; 0 for a library
    scratch: Path  #: an empty folder, deleted when the process ends
    precision: str | None = None  #: of EmbedServe's engine; None: its default for this CPU

    @property
    def model(self) -> Path:
        """The folder of the model that all peers serve."""
        return model_dir(MINILM)


@dataclass(frozen=True, slots=True)
class Peer:
    """A server, or a library in a process that reads texts from a pipe."""

    name: str  #: in records
    title: str  #: in tables and plots
    command: Callable[[PeerProcess], list[str]]
    dialect: str = "openai"
    model: str = "all-MiniLM-L6-v2"
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None  #: its working directory; None: the harness's
    environment: Environment | None = None  #: None: this project's environment
    #: Returns why the peer can't run on this machine, or None.
    unavailable_reason: Callable[[], str | None] = lambda: None


#: Environment variables for peers that load the model by its path and need no hub.
OFFLINE_ENV = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
