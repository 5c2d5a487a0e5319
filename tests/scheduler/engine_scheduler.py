from typing import Any

from serve_app.config import EmbedderSettings
from serve_app.scheduler.pending import PendingGroup
from serve_app.scheduler.scheduler import Scheduler
from serve_app.types import TextGroup
from tests.fakes import FakeEngine


class EngineScheduler(Scheduler):
    """A scheduler of groups for one engine."""

    def __init__(self, engine: FakeEngine, settings: EmbedderSettings, **options: Any) -> None:
        super().__init__(settings, streams=engine.streams, **options)
        self._engine = engine

    def group(self, group: TextGroup) -> PendingGroup:
        return PendingGroup(group, self._engine, "model")
