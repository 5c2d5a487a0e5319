"""What is shown of a decision."""

from collections.abc import Mapping
from typing import Annotated, TypedDict

_NUMBERS = {"type": "object", "additionalProperties": {"type": "number"}}
_INTEGERS = {"type": "object", "additionalProperties": {"type": "integer"}}


class ScalingChange(TypedDict):
    """A change of the number of replicas."""

    unix: float
    before: int
    after: int
    reason: str


class ScalingRecord(TypedDict):
    """The latest decision for a deployment, with the numbers behind it."""

    deployment: str
    unix: float  #: time of the decision
    running: int
    target: int
    reason: str
    decided_by: str  #: a term, `bounds`, `downscale` or `reports`
    needs: Annotated[Mapping[str, int], _INTEGERS]  #: replicas that each term asks for
    #: Interactive tokens per second that are expected once a replica that starts now is ready.
    expected_tokens_per_s: float
    load: Annotated[Mapping[str, float], _NUMBERS]  #: fields of `FleetLoad`
    settings: Annotated[Mapping[str, float], _NUMBERS]  #: those of the policy that are set
    min_replicas: int
    max_replicas: int
    room: int | None  #: replicas that the cluster has resources for; null: unknown
    changes: list[ScalingChange]  #: the latest ones, newest first
