"""Puts the parts of a process together: selections → pools; cache and pools → catalog."""

from collections.abc import Callable, Coroutine, Mapping, Sequence, Set
from functools import partial
from typing import TYPE_CHECKING, Any

from serve_app.cache.codec import task_codecs
from serve_app.config import AliasConfig, AppConfig, ModelConfig, RequestSettings
from serve_app.engines.base import Engine
from serve_app.live.live_feed import Topology
from serve_app.meter import Meter
from serve_app.model_prep.engine_selection import EngineSelection, load_engine
from serve_app.models import ModelSpec
from serve_app.providers import load_provider
from serve_app.providers.base import Provider
from serve_app.providers.provider_pool import ProviderModel, ProviderPool
from serve_app.scheduler.canaries import CanarySchedule
from serve_app.scheduler.delivery import Encode
from serve_app.scheduler.engine_pool import EnginePool, PooledModel
from serve_app.scheduler.startup_timer import StartupTimer
from serve_app.service.alias import Alias, Canary
from serve_app.service.backend import CachedBackend, EngineCalls
from serve_app.service.cache_loss import measure_cache_loss
from serve_app.service.catalog import Catalog, EngineFailures, Fallback
from serve_app.service.embed import CountReplicas, EmbedService
from serve_app.service.replica_stats import ReplicaStats
from serve_app.service.shadow import Shadow
from serve_app.tasks import Task
from serve_app.types import CacheLoss, CacheState

if TYPE_CHECKING:  # it imports the Redis client, which replicas without a cache don't need
    from serve_app.cache.stack import CacheStack

_SCORE_TASKS = frozenset[Task](("rerank", "classify"))


def create_engine_pool(
    config: AppConfig,
    selections: Sequence[EngineSelection],
    *,
    threads: int,
    cpus: Set[int],
    meter: Meter,
    load: Callable[..., Engine] = load_engine,
    startup: StartupTimer | None = None,
    gpu_share: float | None = None,
) -> EnginePool:
    """Loads the selected engines and warms them up.

    Args:
        config: the application's configuration.
        selections: the models and their engines; those that providers run are left out.
        threads: CPU threads for the models.
        cpus: the CPUs that these threads may use.
        meter: counts batches.
        load: returns the engine for a selection and `threads`.
        startup: measures the start of the process; None: from here.
        gpu_share: the part of a GPU that this process has; None: a whole one, or none.

    Raises:
        ConfigurationError: see `load_engine`.
    """
    share = config.gpu_memory_share or gpu_share
    limits = {} if share is None else {"gpu_memory_share": share}
    models = {
        selection.cached_spec.engine_id: PooledModel(
            selection.spec.name,
            partial(load, selection, threads=threads, **limits),
            _encoders(config, selection.spec),
            selection.rejected,
            _loss_measurement(config, selection.spec),
            _canary(selection),
            keeps_speed=selection.engine != "hashing",  # whose speed may be set
        )
        for selection in selections
        if not selection.spec.is_remote
    }
    return EnginePool(
        models,
        threads=threads,
        cpus=cpus,
        meter=meter,
        max_loaded=config.max_loaded_models,
        startup=startup,
    )


def create_provider_pool(
    config: AppConfig,
    selections: Sequence[EngineSelection],
    *,
    meter: Meter,
    load: Callable[[ModelConfig, ModelSpec], Provider] = load_provider,
) -> ProviderPool:
    """Returns the models that providers run.

    Args:
        config: the application's configuration.
        selections: the models; those that run on engines are left out.
        meter: counts calls.
        load: returns the provider of a model.

    Raises:
        ConfigurationError: see `load_provider`.
    """
    models = {
        selection.cached_spec.engine_id: ProviderModel(
            selection.spec,
            selection.model.source.partition(":")[0],
            load(selection.model, selection.spec),
            selection.model.provider,
            _encoders(config, selection.spec),
            waits=not selection.model.fallback,
            canary=_canary(selection),
        )
        for selection in selections
        if selection.spec.is_remote
    }
    return ProviderPool(models, meter=meter)


def _canary(selection: EngineSelection) -> CanarySchedule | None:
    interval_s = selection.model.effective_canary_interval_s
    if not interval_s or "embed" not in selection.spec.tasks:
        return None
    return CanarySchedule(selection.spec.space_id, interval_s)


def _loss_measurement(config: AppConfig, spec: ModelSpec) -> Callable[[Engine], CacheLoss] | None:
    dtype = config.cache.dtype
    if dtype == "float32" or "embed" not in spec.tasks:
        return None
    codec = task_codecs(spec, dtype)["embed"]
    return partial(measure_cache_loss, spec=spec, dtype=dtype, codec=codec)


def _encoders(config: AppConfig, spec: ModelSpec) -> Mapping[Task, Encode]:
    codecs = task_codecs(spec, config.cache.dtype)
    return {task: codec.encode for task, codec in codecs.items()}


def create_catalog(
    config: AppConfig,
    specs: Sequence[ModelSpec],
    cache: "CacheStack",
    engine: Callable[[str], EngineCalls],
    settings: RequestSettings,
    meter: Meter,
    replica_stats: ReplicaStats,
    *,
    cache_state: Callable[[], Coroutine[Any, Any, CacheState]],
    engine_failures: EngineFailures,
    count_replicas: Callable[[str], CountReplicas] | None = None,
    topology: Topology | None = None,
) -> Catalog:
    """Returns the services of all models.

    Args:
        config: the application's configuration.
        specs: the models.
        cache: the tiers of this process, with a lookup for each model.
        engine: returns for an engine's id the calls that bypass the cache.
        settings: limits and timeouts.
        meter: counts the requests.
        replica_stats: statistics over all replicas of the service.
        cache_state: returns the state of L2.
        engine_failures: see `Catalog`.
        count_replicas: for an engine's id, see `EmbedService`; None: engines are in this process.
        topology: of the service; None: that of the configuration.

    Raises:
        ConfigurationError: see `EmbedService.apply`.
    """
    services = [
        EmbedService(
            spec,
            CachedBackend(cache.lookups[spec.engine_id].run, engine(spec.engine_id), cache_state),
            settings,
            meter.for_model(spec.name),
            uncached_tasks=frozenset() if config.cache.scores else _SCORE_TASKS,
            # Models that share too little memory are loaded by their users, not by health checks.
            probes=config.max_loaded_models is None or spec is specs[0],
            count_replicas=None if count_replicas is None else count_replicas(spec.engine_id),
        )
        for spec in specs
    ]
    defaults = {task: model.name for model in config.served_models for task in model.default_for}
    chained = (model for model in config.served_models if model.fallback)
    fallbacks = {m.name: Fallback(m.fallback, m.spill_over_after_s) for m in chained}
    by_name = {service.spec.name: service for service in services}
    return Catalog(
        services,
        replica_stats,
        defaults=defaults,
        fallbacks=fallbacks,
        engine_failures=engine_failures,
        aliases=[_create_alias(alias, by_name) for alias in config.aliases],
        topology=topology or config.topology,
    )


def _create_alias(config: AliasConfig, services: Mapping[str, EmbedService]) -> Alias:
    settings, canary = config.canary, None
    if settings.model is not None:
        canary = Canary(services[settings.model], settings.share, frozenset(settings.keys))
    primary, shadow = services[config.model], None
    if config.shadow.model is not None:
        shadow = Shadow(config.name, primary, services[config.shadow.model], config.shadow)
    return Alias(config.name, primary, canary, shadow=shadow, is_default=config.is_default)
