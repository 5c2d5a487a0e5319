"""What is known of all replicas of a service, at one moment."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from serve_app.autoscale.scaling_record import ScalingRecord
from serve_app.live.replica_sample import ReplicaIdentity, ReplicaSample


class SilentReplica(NamedTuple):
    """A replica that exists and hasn't sent a sample in time."""

    identity: ReplicaIdentity
    pid: int | None
    state: Literal["starting", "stopping", "no_response"]


class FleetSample(NamedTuple):
    """The samples of a service's replicas, and what decides their number."""

    replicas: Sequence[ReplicaSample]
    silent: Sequence[SilentReplica] = ()
    #: Replicas that each deployment is to have, in the order of the data path; None: not known.
    targets: Mapping[str, int | None] = {}
    scaling: Sequence[ScalingRecord] = ()
    is_stopping: bool = False  #: whether this process is about to stop
