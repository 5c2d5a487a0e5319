"""The speeds of the models of a process, and of all of them together."""

import math
import time
from collections.abc import Callable, Mapping

from serve_app.config import EmbedderSettings
from serve_app.scheduler.model_speed import ComputedBatch, ModelSpeed

#: Tokens that were computed this long ago count for a third.
_TIME_CONSTANT_S = 60.0


class ModelSpeeds:
    """Knows the speed of each model, and what each has computed lately."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Creates an empty collection; `clock` returns monotonic time in seconds."""
        self._clock = clock
        self._speeds: dict[str, ModelSpeed] = {}
        self._served: dict[str, tuple[float, float]] = {}  # decaying tokens, time of the last ones

    def model(self, name: str, streams: int) -> ModelSpeed:
        """Returns the speed of a model.

        Args:
            name: the model.
            streams: how many of its batches run at a time.
        """
        if name not in self._speeds:
            self._speeds[name] = ModelSpeed(streams)
        return self._speeds[name]

    def record(self, model: str, streams: int, batch: ComputedBatch) -> None:
        """Adds a batch of a model; see `model`."""
        self.model(model, streams).record(batch)
        now_s = self._clock()
        served, then_s = self._served.get(model, (0.0, now_s))
        self._served[model] = served * _decay(now_s - then_s) + batch.tokens, now_s

    def capacities(self, settings: EmbedderSettings) -> Mapping[str, float]:
        """Returns tokens per second of each model whose speed is known, if it runs alone."""
        capacities = {
            name: speed.capacity_tokens_per_s(settings) for name, speed in self._speeds.items()
        }
        return {name: capacity for name, capacity in capacities.items() if capacity > 0}

    def capacity_tokens_per_s(self, settings: EmbedderSettings) -> float:
        """Returns tokens per second of all models together, in the ratio of the latest ones.

        0 if no speed is known.
        """
        capacities = self.capacities(settings)
        served = self._recently_served() or dict.fromkeys(capacities, 1.0)
        known = {name: served[name] for name in capacities if name in served}
        seconds = sum(tokens / capacities[name] for name, tokens in known.items())
        return sum(known.values()) / seconds if seconds else 0.0

    def _recently_served(self) -> dict[str, float]:
        """Returns the decayed tokens of each model, at the time of the latest batch of any."""
        latest_s = max((then_s for _, then_s in self._served.values()), default=0.0)
        return {
            name: tokens * _decay(latest_s - then_s)
            for name, (tokens, then_s) in self._served.items()
        }


def _decay(elapsed_s: float) -> float:
    return math.exp(-elapsed_s / _TIME_CONSTANT_S)
