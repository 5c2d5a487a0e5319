"""The service in one process without Ray: the parts of an EmbedServer under uvicorn.

It has the same routes, cache, keys, lanes, metrics and errors. What Ray adds is missing: replicas,
autoscaling, replacement of a process that fails, and changes of settings without a restart.
"""

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence, Set
from typing import NoReturn

import uvicorn
from starlette.types import ASGIApp

from serve_app.access.entrance import Entrance
from serve_app.access.shared_ledger import open_ledger
from serve_app.access.shared_quota import open_quota_store
from serve_app.cache.l2 import open_l2_cache
from serve_app.cache.stack import CacheStack
from serve_app.config import AppConfig, EmbedServerSettings
from serve_app.engines.affinity import available_cpus
from serve_app.errors import InferenceError
from serve_app.live.replica_sampler import ReplicaSampler
from serve_app.meter import Gauges, Meter, process_gauges
from serve_app.model_prep.engine_selection import EngineSelection, load_engine
from serve_app.providers import load_provider
from serve_app.service.catalog import Catalog
from serve_app.service.composition import create_catalog, create_engine_pool, create_provider_pool
from serve_app.service.engine_chains import EngineChains
from serve_app.service.model_pools import ModelPools
from serve_app.service.replica_stats import SingleReplica, this_process
from serve_app.tracing import open_tracer
from serve_app.valkey.shared_server import ServiceIdentity
from serve_app.web.app import create_app
from serve_app.web.http_protocol import HttpProtocol
from serve_app.web.limits import ConcurrencyLimiter
from serve_app.web.request_lifecycle import RequestLifecycle

#: With one CPU a single text is slow, and additional cores scale poorly.
_MAX_THREADS = 2
#: Longer than clients and load balancers keep idle connections.
_KEEP_ALIVE_TIMEOUT_S = 620
_HEALTH_CHECK_PERIOD_S = 1.0
#: As Ray does. The clock also counts time in which the process was stopped, as by `docker pause`.
_FAILED_HEALTH_CHECKS = 3


class StandaloneService:
    """The cache, the engines and the application of one process."""

    def __init__(
        self,
        config: AppConfig,
        selections: Sequence[EngineSelection],
        settings: EmbedServerSettings,
        name: str,
    ) -> None:
        """Loads the engines and opens the cache. Blocks for some seconds.

        Args:
            config: the application's configuration.
            selections: the models and their engines.
            settings: of the process.
            name: selects the embedded cache server among those of all services on the machine.

        Raises:
            ConfigurationError: an engine or the cache can't be used as configured.
        """
        meter = Meter()
        self._settings = settings
        self._cpus = available_cpus()
        self._pool = _load_models(config, selections, self._cpus, meter)
        self._tracer = open_tracer(config.tracing, meter, "standalone")
        identity = ServiceIdentity(service=name, owner_pid=os.getpid())
        specs = [selection.cached_spec for selection in selections]
        chains = EngineChains(config.served_models, specs)
        self._cache = CacheStack(
            specs,
            chains.sends(lambda engine_id: self._pool.model(engine_id).run, meter),
            l1_max_bytes=settings.l1_max_bytes,
            l1_eviction=settings.l1_eviction,
            dtype=config.cache.dtype,
            meter=meter,
            l2=open_l2_cache(config.cache, identity, meter),
        )
        self._entrance = Entrance(
            open_quota_store(config.cache, identity, meter),
            meter,
            ledger=open_ledger(config.cache, identity, meter, specs),
        )
        self._limiter = ConcurrencyLimiter()
        catalog = create_catalog(
            config,
            specs,
            self._cache,
            chains.calls(self._pool.model),
            settings,
            meter,
            SingleReplica(meter, self._gauges, self._sampler(meter)),
            cache_state=self._cache.cache_state,
            engine_failures=chains.engine_failures,
            topology="standalone",
        )
        self._catalog = catalog
        self.app: ASGIApp = RequestLifecycle(self._create_app(catalog, config))

    def _sampler(self, meter: Meter) -> ReplicaSampler:
        return ReplicaSampler(
            this_process(),
            meter,
            in_flight=lambda: self._limiter.in_progress,
            pool=self._pool.sample,
            cache=self._cache,
            keys=self._entrance.key_levels,
            shadows=lambda: self._catalog.shadow_samples(),
        )

    def _create_app(self, catalog: Catalog, config: AppConfig) -> ASGIApp:
        return create_app(
            catalog,
            self._entrance,
            config.cors_origins,
            tracer=self._tracer,
            console=config.console,
            limiter=self._limiter,
        )

    def _gauges(self) -> Gauges:
        return {
            **self._cache.gauges(),
            **self._pool.gauges(),
            **self._catalog.gauges(),
            **process_gauges(),
        }

    async def start(self) -> None:
        """Starts background tasks.

        Raises:
            ConfigurationError: the API keys are invalid.
        """
        self._entrance.apply(self._settings.access)
        self._pool.start()
        self._pool.apply(self._settings, self._cpus)
        self._cache.start()

    async def exit_on_stall(self) -> NoReturn:
        """Ends the process once a batch runs longer than `stall_timeout_s`: it may never end."""
        failures = 0
        while True:
            await asyncio.sleep(_HEALTH_CHECK_PERIOD_S)
            try:
                self._pool.check_health()
                failures = 0
            except InferenceError as error:
                failures += 1
                if failures < _FAILED_HEALTH_CHECKS:
                    continue
                print(f"embedserve: {error} The process ends.", file=sys.stderr, flush=True)
                os._exit(1)  # any other exit waits for the batch

    def end_streams(self) -> None:
        """Ends replies that would go on for ever, so that a stop doesn't wait for them."""
        self._catalog.live.close()

    async def stop(self) -> None:
        """Stops background tasks and closes the cache. Queued texts fail."""
        await self._catalog.close()
        await self._pool.stop()
        await self._entrance.close()
        await self._cache.close()
        if self._tracer is not None:
            await self._tracer.close()


def _load_models(
    config: AppConfig, selections: Sequence[EngineSelection], cpus: Set[int], meter: Meter
) -> ModelPools:
    threads = min(_MAX_THREADS, len(cpus))
    return ModelPools(
        create_engine_pool(
            config, selections, threads=threads, cpus=cpus, meter=meter, load=load_engine
        ),
        create_provider_pool(config, selections, meter=meter, load=load_provider),
    )


async def run(
    service: StandaloneService,
    listener: socket.socket,
    *,
    drain_timeout_s: float,
    on_ready: Callable[[], None],
) -> None:
    """Serves HTTP until SIGINT or SIGTERM, then answers the requests in flight and stops.

    Ends the process, with status 1, if the engine hangs.

    Args:
        service: the service.
        listener: a bound socket.
        drain_timeout_s: how long requests in flight may take after the signal.
        on_ready: called once the service accepts requests.
    """
    # Accepted connections inherit it. uvloop sets it for listeners of its own only, and a response,
    # whose head and body are written separately, would wait for the client's delayed ACK.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    server = _Server(
        uvicorn.Config(
            service.app,
            http=HttpProtocol,
            lifespan="off",
            log_config=None,  # its messages go to the process's log
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_TIMEOUT_S,
            timeout_graceful_shutdown=max(1, round(drain_timeout_s)),
        ),
        on_ready,
        service.end_streams,
    )
    watch = asyncio.create_task(service.exit_on_stall())
    try:
        await service.start()
        # Objects that live as long as the process slow down each full collection by tens of
        # milliseconds, which stop the event loop.
        gc.collect()
        gc.freeze()
        await server.serve([listener])
    finally:
        watch.cancel()
        await service.stop()


class _Server(uvicorn.Server):
    def __init__(
        self,
        config: uvicorn.Config,
        on_ready: Callable[[], None],
        on_shutdown: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._on_ready = on_ready
        self._on_shutdown = on_shutdown

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if sys.platform == "win32":  # whose event loops take no signal handlers
            with super().capture_signals():
                yield
            return
        # uvicorn raises a signal again once it has stopped, and the process would end by it.
        loop = asyncio.get_running_loop()
        signals = (signal.SIGINT, signal.SIGTERM)
        for number in signals:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_shutdown()
        await super().shutdown(sockets)
