"""Six traces, generated from a seed: steady, ramp, spike, day, bulk at night, on/off."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from serve_app.simulation.trace import Trace

_MAX_TOKENS = 512
_BULK_REQUEST_TEXTS = 64
_Rates = npt.NDArray[np.float64]


def steady(seed: int) -> Trace:
    """An hour with the same rate; only chance moves it."""
    return _interactive("steady", np.full(3600, 120.0), seed)


def ramp(seed: int) -> Trace:
    """Half an hour up to ten times the rate, ten minutes there, and down in 20 minutes."""
    minutes = np.arange(3600) / 60
    return _interactive("ramp", np.interp(minutes, [0, 30, 40, 60], [30, 300, 300, 30]), seed)


def spike(seed: int) -> Trace:
    """An hour with five times the rate for five minutes and three times for two, at once."""
    rates = np.full(3600, 60.0)
    rates[1200:1500] *= 5
    rates[2700:2820] *= 3
    return _interactive("spike", rates, seed)


def day(seed: int) -> Trace:
    """A day at twelve times its speed: a night, a morning, a noon, and noise that lasts."""
    hours = np.arange(7200) / 300
    base = np.interp(hours, [0, 5, 9, 12, 13.5, 16, 20, 24], [30, 20, 180, 220, 180, 220, 90, 30])
    noise, level = np.random.default_rng(seed).normal(0, 0.02, 7200), 0.0
    for i, change in enumerate(noise):
        level = 0.97 * level + change
        noise[i] = level
    return _interactive("day", base * np.exp(noise), seed)


def bulk_at_night(seed: int) -> Trace:
    """Few queries, and three jobs that embed documents; the last one goes on in the morning."""
    rates = np.interp(np.arange(5400), [0, 4200, 5400], [20, 20, 120])
    queries = _interactive("bulk-at-night", rates, seed)
    rng = np.random.default_rng([seed, 1])
    starts = np.concatenate(
        [
            600 + np.sort(rng.uniform(0, 200, 250)),
            2100 + np.sort(rng.uniform(0, 300, 400)),
            3900 + np.sort(rng.uniform(0, 900, 300)),
        ]
    )
    arrivals = np.repeat(starts, _BULK_REQUEST_TEXTS)
    tokens = np.clip(rng.normal(200, 40, arrivals.size), 20, _MAX_TOKENS).astype(np.int64)
    return Trace.from_arrays(
        "bulk-at-night",
        np.concatenate([queries.arrival_s, arrivals]),
        np.concatenate([queries.tokens, tokens]),
        np.concatenate([queries.is_bulk, np.ones(arrivals.size, dtype=np.bool_)]),
    )


def on_off(seed: int) -> Trace:
    """Five minutes with ten times the rate of the next five, for an hour."""
    rates = np.where(np.arange(3600) // 300 % 2 == 1, 200.0, 20.0)
    return _interactive("on-off", rates, seed)


SAMPLE_TRACES: dict[str, Callable[[int], Trace]] = {
    "steady": steady,
    "ramp": ramp,
    "spike": spike,
    "day": day,
    "bulk-at-night": bulk_at_night,
    "on-off": on_off,
}


def _interactive(name: str, texts_per_second: _Rates, seed: int) -> Trace:
    """Returns Poisson arrivals of single queries at the given rate of each second."""
    rng = np.random.default_rng([seed, 0])
    counts = rng.poisson(texts_per_second)
    seconds = np.repeat(np.arange(counts.size), counts)
    arrivals = np.sort(seconds + rng.uniform(0, 1, seconds.size))
    tokens = np.clip(rng.lognormal(np.log(60), 0.75, arrivals.size), 3, _MAX_TOKENS)
    return Trace.from_arrays(name, arrivals, tokens.astype(np.int64))
