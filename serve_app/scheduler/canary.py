"""The canary of a model: fixed texts whose vectors should never change.

A space covers the files of a model, but not the machine: a driver, a library, faulty memory or a
provider may change vectors without a trace. The canary embeds its texts from time to time, without
the cache, and compares the vectors with the first ones on this machine.
"""

import asyncio
import io
import logging
from collections.abc import Awaitable, Callable

import numpy as np
from platformdirs import user_cache_path

from serve_app.atomic_file import write_atomically
from serve_app.errors import EmbedServeError
from serve_app.types import Float32, Outputs, TextGroup, Vectors

logger = logging.getLogger(__name__)

#: Larger drifts are reported: what precisions and batches change is ten times smaller.
MAX_DRIFT = 1e-3

#: With other texts, the vectors of the first measurement are those of another file.
_VERSION = 1
_TEXTS = (
    "How do I reset my password?",
    "The harbor freezes in most winters, and the ferry stops until March.",
    "def area(radius):\n    return 3.14159 * radius**2",
    "Best noise-canceling headphones under 200 dollars",
    "Die Lieferung verspätet sich um zwei Werktage.",
    "La réunion est reportée à jeudi matin.",
    "猫は窓辺で眠っている。",
    "Сколько стоит билет до Казани?",
    "Patients in the control group received a placebo twice a day.",
    "error 0x80070005: access denied",
    "ok 👍",
    "Interest rates rose by a quarter of a percentage point, the third increase in a row, while "
    "inflation fell to its lowest level since the spring of last year.",
)
#: The first measurement waits for this long: processes are busiest when they start.
_FIRST_DELAY_S = 300.0
#: How often a busy process is asked whether it is idle.
_IDLE_POLL_S = 5.0

#: Embeds a group; None: the model isn't in memory at the moment.
Embed = Callable[[TextGroup], Awaitable[Outputs | EmbedServeError | None]]


class Canary:
    """Measures how far the vectors of one model have moved. Belongs to one event loop."""

    def __init__(
        self,
        model: str,
        space_id: str,
        interval_s: float,
        embed: Embed,
        is_busy: Callable[[], bool],
    ) -> None:
        """Creates a canary.

        Args:
            model: name of the model, for people.
            space_id: the space of its vectors, which selects the first ones.
            interval_s: time between two measurements.
            embed: computes vectors, without a cache.
            is_busy: whether texts of clients wait. A measurement waits for an idle moment, but not
                longer than `interval_s`.
        """
        self.drift: float | None = None  #: largest 1 - cosine of a text; None: not measured yet
        self.model = model
        self._file = user_cache_path("embedserve") / "canary" / f"{space_id}-{_VERSION}.npy"
        self._interval_s = interval_s
        self._embed = embed
        self._is_busy = is_busy

    async def run(self) -> None:
        """Measures until it is cancelled. Failures are logged."""
        await asyncio.sleep(min(_FIRST_DELAY_S, self._interval_s))
        while True:
            await self._wait_until_idle()
            try:
                await self.measure()
            except Exception:
                logger.exception("The canary of %s failed.", self.model)
            await asyncio.sleep(self._interval_s)

    async def measure(self) -> None:
        """Embeds the texts and updates `drift`; does nothing if the model isn't available.

        The first measurement on a machine keeps its vectors.

        Raises:
            OSError: the vectors can't be kept.
        """
        outputs = await self._embed(TextGroup(_TEXTS, use_cache=False, lane="bulk"))
        if isinstance(outputs, EmbedServeError):
            logger.warning("The canary of %s was not measured: %s", self.model, outputs)
        if not isinstance(outputs, Vectors):
            return
        first = await asyncio.to_thread(self._first, outputs.values)
        self.drift = _drift(first, outputs.values)
        if self.drift > MAX_DRIFT:
            logger.warning(
                "The vectors of %s have moved: the cosine of one text and its first vector on this "
                "machine is %.6f. Vectors that are stored may not compare with new ones. Compare "
                "drivers, libraries and the provider's announcements. To accept the new vectors, "
                "delete %s and restart the service.",
                self.model,
                1 - self.drift,
                self._file,
            )

    async def _wait_until_idle(self) -> None:
        poll_s = min(_IDLE_POLL_S, self._interval_s / 10)
        waited_s = 0.0
        while self._is_busy() and waited_s < self._interval_s:
            await asyncio.sleep(poll_s)
            waited_s += poll_s

    def _first(self, vectors: Float32) -> Float32:
        """Returns the vectors of the first measurement, which these are if there was none."""
        try:
            first: Float32 = np.load(self._file, allow_pickle=False)
            if first.shape == vectors.shape:
                return first
        except (FileNotFoundError, ValueError, EOFError):  # an incomplete file is no reference
            pass
        content = io.BytesIO()
        np.save(content, vectors)
        write_atomically(self._file, content.getvalue())
        return vectors


def _drift(first: Float32, vectors: Float32) -> float:
    """Returns the largest 1 - cosine of two rows; 1 for a vector that isn't finite."""
    a, b = first.astype(np.float64), vectors.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = (a * b).sum(axis=1) / np.where(lengths == 0, 1, lengths)
    same = (first == vectors).all(axis=1)
    drift = float(np.max(np.where(same, 0.0, 1 - cosines)))
    return max(0.0, drift) if np.isfinite(drift) else 1.0
