"""The context of a replica, without Ray."""

import logging
import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import ray
from ray.serve import context
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve._private.config import DeploymentConfig
from ray.serve.schema import ReplicaRank

from serve_app.config import AppConfig, ModelConfig
from serve_app.deployments import replica_engine
from serve_app.deployments.embedder import Embedder
from serve_app.model_prep.engine_selection import EngineSelection, select_engines

RANK = ReplicaRank(rank=0, node_rank=0, local_rank=0)


@pytest.fixture
def assign_gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[int]], None]:
    """A replica's context with one CPU; the returned function assigns GPUs."""
    # Ray has no public API to set a replica's context.
    monkeypatch.setattr(context, "_INTERNAL_REPLICA_CONTEXT", None)  # restored after the test
    context._set_internal_replica_context(
        replica_id=ReplicaID("r", DeploymentID("Embedder", "embedserve")),
        servable_object=Embedder,
        _deployment_config=DeploymentConfig(max_ongoing_requests=8192),
        rank=RANK,
        world_size=1,
    )
    runtime = SimpleNamespace(
        get_assigned_resources=lambda: {"CPU": 1.0}, gcs_address="192.0.2.1:6379"
    )
    monkeypatch.setattr(ray, "get_runtime_context", lambda: runtime)
    monkeypatch.setattr(replica_engine, "read_cpu_quota", lambda: math.inf)

    def assign(gpus: list[int]) -> None:
        monkeypatch.setattr(ray, "get_gpu_ids", lambda: gpus)

    assign([])
    return assign


@pytest.fixture(autouse=True)
def log() -> Iterator[None]:
    """Restores the log of `serve_app`, which deployments pass to Ray Serve's."""
    logger = logging.getLogger("serve_app")
    handlers, level = logger.handlers[:], logger.level
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)


@pytest.fixture
def config() -> AppConfig:
    """Two models without weights, and no shared cache."""
    return AppConfig.parse(
        {
            "models": [
                ModelConfig(name="words", source="hashing:8"),
                ModelConfig(name="others", aliases=("more",), source="hashing:8", max_tokens=64),
            ],
            "cache": {"url": "none"},
        }
    )


@pytest.fixture
def selections(config: AppConfig) -> tuple[EngineSelection, ...]:
    """The engines of the two models."""
    return select_engines(config)
