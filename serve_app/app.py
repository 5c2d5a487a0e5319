"""The application: `serve_app.app:build`, the only place that binds deployments together."""

# No `from __future__ import annotations` here: Ray turns `args` into `AppConfig` only when the
# annotation of `build` is the class itself.
import logging
from dataclasses import replace

import ray
from ray import serve
from ray.serve import Application

from serve_app.cache.codec import Storage
from serve_app.config import AppConfig
from serve_app.deployments.cache_lookup import CacheLookup
from serve_app.deployments.embedder import Embedder
from serve_app.deployments.ingress import Ingress
from serve_app.model_prep.engine_selection import select_engine
from serve_app.models import ModelSpec

logger = logging.getLogger(__name__)

# Ray's own limit per replica must never be what holds requests back: a full replica is tried again
# after a pause, and that pause is latency. Load is refused earlier, in the client's dialect: by the
# Ingress' `max_concurrent_requests` and the Embedder's `max_queued_tokens`.
_ONGOING = 8192

# A stopping replica looks for unfinished requests this often, one tier after the other.
_SHUTDOWN_LOOK_S = 0.2

_light = serve.deployment(
    max_ongoing_requests=_ONGOING,
    graceful_shutdown_wait_loop_s=_SHUTDOWN_LOOK_S,
    ray_actor_options={"num_cpus": 0},
)
_heavy = serve.deployment(
    max_ongoing_requests=_ONGOING,
    graceful_shutdown_wait_loop_s=_SHUTDOWN_LOOK_S,
    health_check_period_s=5,
    health_check_timeout_s=10,
)

#: Cores of an Embedder replica where the configuration says nothing: each core more makes the
#: others wait for it longer, one alone makes a lone text wait.
_EMBEDDER_CPUS = 2


def build(args: AppConfig) -> Application:
    """Binds Ingress -> CacheLookup -> Embedder, or Ingress -> Embedder where `inline` is asked for.

    What isn't cached, the Ingress asks the Embedder itself in both.

    The engine and the space of the vectors are decided here, once; every replica holds to them or
    doesn't start.

    Raises:
        ModelSourceError: the model's files are missing or not the ones that were asked for.
        ConfigurationError: no engine that was asked for can be had.
    """
    choice = select_engine(args)
    for refusal in choice.refused:
        logger.warning("Refused: %s", refusal)
    logger.info("Chosen: %s at %s.", choice.config.engine, choice.config.precision)
    embedder = _heavy(Embedder).options(ray_actor_options={"num_cpus": _cpus()}).bind(choice)
    spec = _as_stored(choice.spec, args.cache.dtype)
    if args.topology == "inline":
        return _light(Ingress).bind(spec, embedder, args, embedder)
    lookup = _light(CacheLookup).bind(spec, embedder, args.cache)
    return _light(Ingress).bind(spec, lookup, args, embedder)


def _as_stored(spec: ModelSpec, storage: Storage) -> ModelSpec:
    """Vectors that are rounded for the cache are of another space than those of the engine."""
    if storage == "float32":
        return spec
    return replace(spec, space_id=f"{spec.space_id}+{storage}")


def _cpus() -> int:
    """What a replica asks for, or as much as there is: it must fit onto a machine of one core."""
    if not ray.is_initialized():
        return _EMBEDDER_CPUS
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return max(1, min(_EMBEDDER_CPUS, int(resources.get("CPU", _EMBEDDER_CPUS))))
