"""The application builder `serve_app.app:build`: configuration → engines → deployments."""

# Without `from __future__ import annotations`: Ray converts `args` to `AppConfig` only if the
# annotation of `build` is the class itself, not a string.
import logging

import ray
from ray import serve
from ray.serve import Application

from serve_app.config import CACHE_SERVER, AppConfig
from serve_app.deployments.cache_lookup import CacheLookup
from serve_app.deployments.cache_server import CacheServer
from serve_app.deployments.embed_server import EmbedServer
from serve_app.deployments.embedder import Embedder
from serve_app.deployments.ingress import Ingress
from serve_app.deployments.providers import Providers
from serve_app.deployments.service_identity import HEAD
from serve_app.deployments.token_router import TokenRouter
from serve_app.model_prep.engine_selection import EngineSelection, select_engines
from serve_app.tracing import check_tracing

logger = logging.getLogger(__name__)

# Ray's limit per replica must never apply: the router retries a full replica after a backoff, which
# adds latency. `max_concurrent_requests` of the Ingress and `max_queued_tokens` of the Embedder
# reject load earlier, with an error in the client's dialect.
_MAX_ONGOING_REQUESTS = 8192

# The deployments stop one after the other, and each adds up to this interval to the shutdown.
_SHUTDOWN_POLL_S = 0.2

# Ray notices a dead replica at its next health check. A busy replica isn't replaced earlier: three
# checks in a row have to time out.
_HEALTH_CHECK_PERIOD_S = 1

_cpu_free_deployment = serve.deployment(
    max_ongoing_requests=_MAX_ONGOING_REQUESTS,
    graceful_shutdown_wait_loop_s=_SHUTDOWN_POLL_S,
    health_check_period_s=_HEALTH_CHECK_PERIOD_S,
    ray_actor_options={"num_cpus": 0},
)
_model_deployment = serve.deployment(
    max_ongoing_requests=_MAX_ONGOING_REQUESTS,
    graceful_shutdown_wait_loop_s=_SHUTDOWN_POLL_S,
    health_check_period_s=_HEALTH_CHECK_PERIOD_S,
    health_check_timeout_s=10,
)

# On the head, because the service ends with it, or else has a `cache.url`: so the server never
# moves. The replica starts when one on another node asks for the server, and then stays for good.
_cache_server_deployment = _cpu_free_deployment(CacheServer).options(
    name=CACHE_SERVER,
    ray_actor_options={"num_cpus": 0, "resources": {HEAD: 0.001}},
    autoscaling_config={
        "min_replicas": 0,
        "max_replicas": 1,
        "upscale_delay_s": 0,
        "downscale_to_zero_delay_s": 10 * 365 * 24 * 3600,
    },
)

#: Default CPUs of a replica with models: with one CPU a single text is slow, and additional cores
#: scale poorly.
_MODEL_CPUS = 2


def build(args: AppConfig) -> Application:
    """Binds Ingress → CacheLookup → Embedders, or with `topology: colocated` an EmbedServer.

    There is one Embedder for each deployment that models name, or Providers if providers run its
    models. The Ingress also has handles of them for calls that aren't cached. A CacheServer has no
    replica until one on another node than the head asks for the embedded cache server.

    The engines and the embedding spaces are selected here, once. A replica that can't provide them
    doesn't start.

    Raises:
        ModelSourceError: a model's files are missing or don't match its `sha256`.
        ConfigurationError: no engine that the configuration allows is usable, or tracing is on
            without its extra.
    """
    check_tracing(args.tracing)
    selections = select_engines(args)
    for selection in selections:
        _log_selection(selection)
    resources = {"num_cpus": _model_cpus(len(args.engine_deployments) or 1)}
    is_embedded = args.cache.url.get_secret_value() == "embedded"
    cache_server = _cache_server_deployment.bind(args) if is_embedded else None
    if args.topology == "colocated":
        server = _model_deployment(EmbedServer).options(ray_actor_options=resources)
        return server.bind(args, selections, cache_server=cache_server)
    deployments = {
        **dict.fromkeys(
            args.engine_deployments,
            _model_deployment(Embedder).options(
                ray_actor_options=resources,
                request_router_config={"request_router_class": TokenRouter},
            ),
        ),
        **dict.fromkeys(args.provider_deployments, _cpu_free_deployment(Providers)),
    }
    embedders = {
        name: deployment.options(name=name).bind(
            args, tuple(s for s in selections if s.model.deployment == name)
        )
        for name, deployment in deployments.items()
    }
    lookup = _cpu_free_deployment(CacheLookup).bind(
        args, selections, embedders, cache_server=cache_server
    )
    return _cpu_free_deployment(Ingress).bind(
        args, selections, lookup, embedders, cache_server=cache_server
    )


def _log_selection(selection: EngineSelection) -> None:
    for rejection in selection.rejected:
        logger.warning("%s: rejected engine: %s", selection.spec.name, rejection)
    logger.info(
        "%s: selected engine: %s at %s.",
        selection.spec.name,
        selection.engine,
        selection.precision,
    )


def _model_cpus(deployments: int) -> float:
    """Returns the default CPUs of a replica, bounded so that one of each deployment fits."""
    if not ray.is_initialized():
        return _MODEL_CPUS
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    share = resources.get("CPU", _MODEL_CPUS) / deployments
    return min(_MODEL_CPUS, int(share)) if share >= 1 else share
