"""The simulated service: its replicas' speed, settings and router."""

import math
from dataclasses import dataclass, field
from typing import Literal

from serve_app.autoscale.policy import Bounds
from serve_app.config import EmbedderSettings
from serve_app.scheduler.batch_cost import BatchCost

#: `least_tokens`: the service's own. `power_of_two`: Ray's. `least_requests`: HAProxy's, for
#: `colocated` deployments; it keeps nothing back.
RouterName = Literal["least_tokens", "power_of_two", "least_requests"]


@dataclass(frozen=True, slots=True)
class SimulatedService:
    """Replicas of one model, with one stream each."""

    cost: BatchCost
    settings: EmbedderSettings = field(default_factory=EmbedderSettings)
    startup_s: float = 8.0
    #: Start-up time of a replica while 0, 1, … others are starting, which compete for the cores.
    #: The last one also holds with more. Empty: always `startup_s`.
    startup_times_s: tuple[float, ...] = ()
    report_delay_s: float = 0.0  #: age of the reports when the policy decides
    first_report_s: float = 1.0  #: time of the first reports; the next ones follow every second
    bounds: Bounds = field(default_factory=lambda: Bounds(1, 20))
    #: `least_requests`: from the readiness of a replica until HAProxy has reloaded and sends to it.
    reload_s: float = 1.0
    initial_replicas: int = 1
    router: RouterName = "least_tokens"
    #: `least_tokens` keeps requests back while all replicas have work of their lane for this long.
    #: The service's router keeps nothing back.
    max_assigned_s: float = math.inf
    #: `power_of_two`, as Ray, keeps requests back while all replicas have this many.
    max_ongoing_requests: int = 512
    fill: float = 0.85  #: tokens of a full batch relative to its padded tokens

    @property
    def full_batch_tokens(self) -> float:
        """Padded tokens of a batch that takes `batch_target_s`."""
        tokens = self.cost.tokens_within(self.settings.batch_target_s)
        return min(max(tokens, 1.0), self.settings.max_batch_tokens)

    @property
    def capacity_tokens_per_s(self) -> float:
        """Speed of a replica in full batches, without padding."""
        return self.fill * self.cost.capacity(self.full_batch_tokens)
