"""What a caller of replicas sends along with its calls: the load that has not reached a replica."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CallerLoad:
    """The load of one caller, over all replicas of a deployment.

    A caller keeps requests back while all replicas are busy. Replicas report its load to the
    autoscaler together with theirs. The tokens are estimates: a caller has no tokenizer.
    """

    caller: str  #: unique to a process
    held_interactive_tokens: int = 0  #: kept back now
    held_bulk_tokens: int = 0  #: kept back now
    oldest_held_s: float = 0.0  #: how long the oldest interactive request is kept back; 0: none is
    arrived_interactive_tokens: int = 0  #: since the start of the caller
    arrived_bulk_tokens: int = 0  #: since the start of the caller
