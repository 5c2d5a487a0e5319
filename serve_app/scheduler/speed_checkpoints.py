"""Writes the speeds of the models of a process to their files."""

import asyncio
import logging
from dataclasses import dataclass

from serve_app.scheduler.model_speed import ModelSpeed
from serve_app.scheduler.speed_file import SpeedFile

logger = logging.getLogger(__name__)

_INTERVAL_S = 60.0


@dataclass(slots=True)
class _Checkpoint:
    speed: ModelSpeed
    file: SpeedFile
    batches: int = 0  # when it was written


class SpeedCheckpoints:
    """Restores speeds, and writes them every minute and at the end. Belongs to one event loop."""

    def __init__(self, interval_s: float = _INTERVAL_S) -> None:
        """Creates an empty collection; `interval_s` is the time between two checkpoints."""
        self._interval_s = interval_s
        self._checkpoints: dict[str, _Checkpoint] = {}
        self._task: asyncio.Task[None] | None = None

    def add(self, model: str, speed: ModelSpeed, file: SpeedFile) -> None:
        """Restores the speed of a model, and writes it from now on."""
        if model in self._checkpoints:  # it was unloaded meanwhile
            return
        state = file.read()
        if state is not None:
            try:
                speed.restore(state)
            except ValueError as error:
                logger.info("The kept speed of %s is ignored: %s", model, error)
        self._checkpoints[model] = _Checkpoint(speed, file)

    def start(self) -> None:
        """Starts writing. Idempotent; call it in the event loop."""
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Writes for the last time."""
        if self._task is not None:
            self._task.cancel()
        await self._write()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            await self._write()

    async def _write(self) -> None:
        for checkpoint in [*self._checkpoints.values()]:
            if checkpoint.batches == checkpoint.speed.batches:
                continue
            checkpoint.batches = checkpoint.speed.batches
            await asyncio.to_thread(checkpoint.file.write, checkpoint.speed.state())
