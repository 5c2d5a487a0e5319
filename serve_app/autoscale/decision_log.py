"""What the policy has decided for a deployment, and why: log lines, and a record to show."""

import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict

from serve_app.autoscale.fleet_load import FleetLoad
from serve_app.autoscale.policy import Bounds, Decision
from serve_app.autoscale.scaling_record import ScalingChange, ScalingRecord

#: Ray Serve's controller writes the records of this logger to its log file.
_logger = logging.getLogger("ray.serve")
#: As many changes are remembered.
MAX_CHANGES = 10


class DecisionLog:
    """Logs the changes of one deployment, and remembers the latest ones."""

    def __init__(self, deployment: str, settings: Mapping[str, float]) -> None:
        """Creates an empty log.

        Args:
            deployment: its name.
            settings: what a record says of the policy's settings.
        """
        self._deployment = deployment
        self._settings = settings
        self._changes = deque[ScalingChange](maxlen=MAX_CHANGES)

    def add(
        self,
        decision: Decision,
        load: FleetLoad,
        *,
        target: int,
        bounds: Bounds,
        arrivals: float,
        now_s: float,
    ) -> ScalingRecord:
        """Returns the record of a decision; logs it if it changes the target.

        Args:
            decision: what the policy decides.
            load: what it knows.
            target: the number of replicas before.
            bounds: limits of the number of replicas.
            arrivals: interactive tokens per second that are expected.
            now_s: time of the decision.
        """
        if decision.replicas != target and not self._is_known(target, decision.replicas):
            self._changes.appendleft(
                {
                    "unix": now_s,
                    "before": target,
                    "after": decision.replicas,
                    "reason": decision.reason,
                }
            )
            self._log(f"{target} → {decision.replicas} replicas: {decision.reason}")
        return {
            "deployment": self._deployment,
            "unix": now_s,
            "running": load.replicas,
            "target": decision.replicas,
            "reason": decision.reason,
            "decided_by": decision.decided_by,
            "needs": {str(term): need for term, need in decision.needs.items()},
            "expected_tokens_per_s": arrivals,
            "load": asdict(load),
            "settings": self._settings,
            "min_replicas": bounds.min_replicas,
            "max_replicas": bounds.max_replicas,
            "room": bounds.room,
            "changes": list(self._changes),
        }

    def _is_known(self, before: int, after: int) -> bool:
        """Whether it is the latest change, which Ray delays if its own delays are set."""
        latest = self._changes[0] if self._changes else None
        return latest is not None and (latest["before"], latest["after"]) == (before, after)

    def _log(self, message: str) -> None:
        # Changes are rare, and the default level of Serve's log is WARNING: passed by.
        record = _logger.makeRecord(
            _logger.name, logging.INFO, __file__, 0, f"{self._deployment}: {message}", (), None
        )
        _logger.handle(record)
