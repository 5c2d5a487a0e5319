"""The models of a process that are in memory: all of them, or the most recently used ones."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass

from serve_app.engines.base import Engine
from serve_app.errors import Unavailable

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class LoadedModel:
    """An engine in memory."""

    name: str
    engine: Engine
    users: int = 0  #: callers that hold it; a model with any stays loaded


class LoadedModels:
    """Loads models when they are needed, and unloads the least recently used ones.

    At most `max_loaded` are in memory, the one that is being loaded included. While all of them are
    in use, a caller waits for those that use the least recently used one; later ones wait for it to
    be loaded again, so that no model waits for ever. Belongs to one event loop.
    """

    def __init__(
        self,
        loaders: Mapping[str, Callable[[], Engine]],
        executor: Executor,
        *,
        max_loaded: int | None = None,
    ) -> None:
        """Loads as many models as may stay in memory, in their order. Blocks meanwhile.

        Args:
            loaders: for each name a function that returns the engine, ready to run.
            executor: runs the loaders, one at a time.
            max_loaded: number of models in memory; None: all stay loaded.

        Raises:
            ConfigurationError: a model can't be loaded.
        """
        self._loaders = loaders
        self._executor = executor
        self._max_loaded = len(loaders) if max_loaded is None else max_loaded
        self._lock = asyncio.Lock()
        self._released = asyncio.Event()
        self._models: dict[str, LoadedModel] = {}  # least recently used first
        for name in list(loaders)[: self._max_loaded]:
            engine = executor.submit(loaders[name]).result()
            self._models[name] = LoadedModel(name, engine)

    @property
    def engines(self) -> list[Engine]:
        """The engines in memory."""
        return [model.engine for model in self._models.values()]

    def find(self, name: str) -> Engine | None:
        """Returns an engine that is in memory; None: it isn't."""
        model = self._models.get(name)
        return None if model is None else model.engine

    def hold(self, name: str) -> LoadedModel | None:
        """Returns a model in memory, which the caller must `release`; None: it isn't there."""
        model = self._models.get(name)
        if model is None:
            return None
        if self._max_loaded < len(self._loaders):
            self._models[name] = self._models.pop(name)  # the most recently used one
        model.users += 1
        return model

    async def load(self, name: str) -> tuple[LoadedModel, float]:
        """Returns a model as `hold` does, and the seconds of waiting for it.

        Raises:
            Unavailable: the model can't be loaded.
        """
        start_s = time.perf_counter()
        async with self._lock:
            if name not in self._models:
                if len(self._models) >= self._max_loaded:
                    await self._unload_one()
                self._models[name] = LoadedModel(name, await self._load(name))
            model = self.hold(name)
            assert model is not None, "It was loaded just now."
        return model, time.perf_counter() - start_s

    def release(self, model: LoadedModel) -> None:
        """Ends the use of a model."""
        model.users -= 1
        if not model.users:
            self._released.set()

    async def _unload_one(self) -> None:
        """Unloads the least recently used model, if possible one that nobody holds."""
        models = [*self._models.values()]
        model = next((model for model in models if not model.users), models[0])
        del self._models[model.name]  # nobody holds it from now on
        try:
            while model.users:
                self._released.clear()
                await self._released.wait()
        except asyncio.CancelledError:
            self._models[model.name] = model  # it is still in memory
            raise
        logger.info("Unloaded the model %s.", model.name)

    async def _load(self, name: str) -> Engine:
        start_s = time.perf_counter()
        loop = asyncio.get_running_loop()
        try:
            engine = await loop.run_in_executor(self._executor, self._loaders[name])
        except Exception as error:
            logger.exception("The model %s can't be loaded", name)
            raise Unavailable(f"The model can't be loaded: {type(error).__name__}.") from error
        logger.info("Loaded the model %s in %.2f s.", name, time.perf_counter() - start_s)
        return engine
