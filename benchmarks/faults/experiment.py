"""One fault on a running service: the load before, during and after it.

load starts → steady state → inject → duration → heal → recovered → load ends → record
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

from .fault import Fault, Scene
from .load import Load
from .reply_check import ReplyCheck
from .service import FaultyService

BEFORE_S = 6.0
#: The service has recovered if all requests of so many seconds are right and take at most so long.
_STABLE_S, _FAST_S = 3.0, 1.0
RECOVERY_TIMEOUT_S = 60.0
_POLL_S = 0.25

OnProgress = Callable[[str], None]


class Experiment:
    """Injects faults into one service, one after another."""

    def __init__(
        self, service: FaultyService, texts: Sequence[str], check: ReplyCheck, rate: float
    ) -> None:
        """An experiment on a healthy service.

        Args:
            service: a running service.
            texts: texts whose vectors the check knows.
            check: judges replies.
            rate: requests per second.
        """
        self._service, self._texts, self._check, self._rate = service, texts, check, rate

    def run(self, fault: Fault, seed: int, on_progress: OnProgress) -> dict[str, Any]:
        """Injects a fault under load and returns what happened, without the machine.

        Args:
            fault: the fault, which is healed in any case.
            seed: decides which requests are sent.
            on_progress: called with each step.
        """
        service = self._service
        load = Load(service.url, service.api_key, self._texts, self._check, self._rate, seed)
        start_s = time.monotonic()
        problem = ""
        with load:
            on_progress("before")
            time.sleep(BEFORE_S)
            scene = Scene(service, load)
            injected_s = time.monotonic()
            on_progress("during")
            try:
                try:
                    fault.inject(scene)
                    time.sleep(fault.duration_s)
                finally:
                    fault.heal(scene)
            except Exception as error:  # the record says that this was no experiment
                problem = f"{type(error).__name__}: {error}"
            healed_s = time.monotonic()
            on_progress("after")
            recovered_s = self._wait_for_recovery(load, healed_s)
        service_is_healthy = service.wait_until_healthy(RECOVERY_TIMEOUT_S)
        periods = load.ledger.periods(injected_s, healed_s)
        return {
            "fault": fault.name,
            "topology": service.topology,
            "rate": self._rate,
            "fault_s": round(healed_s - injected_s, 1),
            "recovery_s": None if recovered_s is None else round(recovered_s - healed_s, 1),
            "healthy_again": service_is_healthy,
            "problem": problem,
            **{name: figures._asdict() for name, figures in periods.items()},
            "errors": load.ledger.errors(),
            "injected_at_s": round(injected_s - start_s, 1),
            "timeline": load.ledger.timeline(start_s),
        }

    def _wait_for_recovery(self, load: Load, healed_s: float) -> float | None:
        while True:
            recovered_s = load.ledger.recovered_at(
                healed_s,
                stable_s=_STABLE_S,
                min_requests=round(self._rate * _STABLE_S / 2),
                max_latency_s=_FAST_S,
            )
            if recovered_s is not None or time.monotonic() > healed_s + RECOVERY_TIMEOUT_S:
                return recovered_s
            time.sleep(_POLL_S)
