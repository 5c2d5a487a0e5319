"""The snapshot of a service, as `GET /live` sends it. Null stands for what isn't known."""

from typing import Literal, TypedDict

ModelState = Literal["ready", "asleep", "unavailable"]
ReplicaState = Literal["running", "starting", "stopping", "no_response"]


class RequestRates(TypedDict):
    """Requests that run a model, over all models."""

    per_s: float | None
    errors_per_s: float | None  #: of any status but 200
    p50_ms: float | None
    p99_ms: float | None
    in_flight: int


class LaneState(TypedDict):
    """A lane: its queues, and the durations of its requests."""

    queued_tokens: float  #: waiting or being computed
    oldest_s: float | None  #: for how long the oldest text has waited for a batch; 0: none waits
    p50_ms: float | None
    p99_ms: float | None


class Lanes(TypedDict):
    """Both lanes."""

    interactive: LaneState
    bulk: LaneState


class BatchRates(TypedDict):
    """Batches that engines have computed."""

    per_s: float | None
    texts_mean: float | None
    fill: float | None  #: padded tokens of a batch, as a share of the current limit
    padding_share: float | None  #: of the tokens that were computed


class CacheLevels(TypedDict):
    """What the cache has served, and how large it is. Ratios are shares of all texts."""

    hit_ratio: float | None  #: texts that weren't computed for their request
    l1_hit_ratio: float | None
    l2_hit_ratio: float | None
    l1_bytes: int  #: of all processes
    l1_entries: int
    state: str  #: of the shared cache: `up`, `degraded`, `off`, `unknown`
    reason: str | None


class CostRates(TypedDict):
    """What requests cost. Null where no model has a price."""

    usd_per_hour: float | None
    saved_usd_per_hour: float | None
    usd_total: float | None  #: since the start of the replicas that run


class ModelLive(TypedDict):
    """A model."""

    name: str
    task: str
    state: ModelState | None
    engine: str | None
    precision: str | None
    requests_per_s: float | None
    queued_tokens: float


class DeploymentLive(TypedDict):
    """A deployment, and what has decided how many replicas it has."""

    name: str
    replicas: int  #: that run
    target: int | None
    decided_by: str | None
    reason: str | None
    busy_share: float | None  #: mean of its replicas


class ReplicaLive(TypedDict):
    """A replica. What it didn't report is null."""

    deployment: str
    id: str
    node: str
    pid: int | None
    state: ReplicaState
    uptime_s: float | None
    busy_share: float | None  #: null where no engine runs
    memory_bytes: int | None
    queued_tokens: float | None


class KeyLive(TypedDict):
    """An API key, by its name. Its quota is that of the model of which it has the least left."""

    name: str
    tokens_per_s: float | None
    limit: int | None  #: tokens per minute; null: no limit
    remaining: float | None  #: null: no limit, or no request has come yet


class Snapshot(TypedDict):
    """A service at one moment. Rates and ratios are those since the previous snapshot."""

    unix: float
    uptime_s: float
    topology: Literal["separate", "colocated", "standalone"]
    version: str
    requests: RequestRates
    lanes: Lanes
    texts_per_s: float | None
    tokens_per_s: float | None
    batches: BatchRates
    cache: CacheLevels
    cost: CostRates
    models: list[ModelLive]
    deployments: list[DeploymentLive]
    replicas: list[ReplicaLive]
    keys: list[KeyLive]  #: those with the most tokens per second first
