"""Shows decisions to the cluster: Ray's key-value store for the service, gauges for Prometheus."""

import json
import logging
import threading
from typing import Any, get_args

from serve_app.autoscale.decision_log import MAX_CHANGES
from serve_app.autoscale.policy import DecidedBy, Term
from serve_app.autoscale.scaling_record import ScalingChange, ScalingRecord
from serve_app.metrics import (
    AUTOSCALING_DECIDED_BY,
    AUTOSCALING_NEEDED_REPLICAS,
    AUTOSCALING_TARGET_REPLICAS,
    Metric,
)

_logger = logging.getLogger("ray.serve")
_NAMESPACE = "embedserve_autoscaling"


def read_record(application: str, deployment: str) -> ScalingRecord | None:
    """Returns the latest record of a deployment; None: there is none. Blocks."""
    from ray.experimental.internal_kv import _internal_kv_get

    value = _internal_kv_get(f"{application}/{deployment}", namespace=_NAMESPACE)
    return json.loads(value) if value else None


class Publisher:
    """Publishes the records of one deployment, in a thread, because calls of Ray may block."""

    def __init__(self, application: str, deployment: str) -> None:
        self._application, self._deployment = application, deployment
        self._thread: threading.Thread | None = None
        self._gauges: dict[Metric, Any] = {}
        self._earlier: list[ScalingChange] | None = None

    def publish(self, record: ScalingRecord) -> None:
        """Publishes a record, unless the previous one is still on its way."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._try, args=(record,), daemon=True)
            self._thread.start()

    def _try(self, record: ScalingRecord) -> None:
        try:
            self._publish(record)
        except Exception as error:  # the next record follows in a second
            _logger.debug("The decision of the autoscaling policy isn't published: %r", error)

    def _publish(self, record: ScalingRecord) -> None:
        import ray
        from ray.experimental.internal_kv import _internal_kv_put

        if not ray.is_initialized():
            return
        if self._earlier is None:  # what a controller before this one has changed
            earlier = read_record(self._application, self._deployment)
            self._earlier = earlier["changes"] if earlier else []
        changes = [*record["changes"], *self._earlier][:MAX_CHANGES]
        _internal_kv_put(
            f"{self._application}/{self._deployment}",
            json.dumps({**record, "changes": changes}),
            namespace=_NAMESPACE,
        )
        self._set(AUTOSCALING_TARGET_REPLICAS, record["target"])
        for term in get_args(Term):
            self._set(AUTOSCALING_NEEDED_REPLICAS, record["needs"].get(term, 0), term)
        for name in get_args(DecidedBy):
            self._set(AUTOSCALING_DECIDED_BY, float(name == record["decided_by"]), name)

    def _set(self, metric: Metric, value: float, *tags: str) -> None:
        from ray.util.metrics import Gauge

        if metric not in self._gauges:
            self._gauges[metric] = Gauge(metric.name, metric.description, metric.tags)
        values = (self._application, self._deployment, *tags)
        self._gauges[metric].set(value, dict(zip(metric.tags, values, strict=True)))
