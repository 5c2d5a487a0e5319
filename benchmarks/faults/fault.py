"""What a fault is."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from .load import Load
from .service import TOPOLOGIES, FaultyService


class Scene(NamedTuple):
    """What a fault may act on."""

    service: FaultyService
    load: Load


class Fault(ABC):
    """One fault: it begins with `inject`, lasts for `duration_s`, and ends with `heal`."""

    name: str
    description: str  #: a clause that says what happens, for the table
    topologies: Sequence[str] = tuple(TOPOLOGIES)
    duration_s: float = 8.0
    #: Why requests fail that the service can't save; empty if none may.
    reason: str = ""

    @abstractmethod
    def inject(self, scene: Scene) -> None:
        """Begins the fault and returns soon.

        Raises:
            RuntimeError: it can't be injected here; the message says why.
        """

    def heal(self, scene: Scene) -> None:
        """Ends the fault, and everything that `inject` started. It is called if `inject` fails."""
        return
