"""An invalid `user_config` never changes a replica."""

from typing import Any
from unittest.mock import Mock

import pytest
from ray.serve.schema import ReplicaRank

from serve_app.deployments.cache_lookup import CacheLookup
from serve_app.deployments.embed_server import EmbedServer
from serve_app.deployments.embedder import Embedder
from serve_app.deployments.ingress import Ingress
from serve_app.errors import ConfigurationError

RANK = ReplicaRank(rank=0, node_rank=0, local_rank=0)


@pytest.mark.parametrize(
    ("deployment", "user_config", "message"),
    [
        (Ingress, {"max_calls": 8}, "Ingress: user_config: `max_calls` is now called `max_in_fl"),
        (CacheLookup, {"memory_max_bytes": 0}, "CacheLookup: user_config: `memory_max_bytes` is"),
        (Embedder, {"budget_tokens": 99}, "Embedder: user_config: `budget_tokens` is now called"),
        (EmbedServer, {"max_in_flight_calls": 1}, "`max_in_flight_calls` was removed"),
        (Embedder, {"max_batch_tokens": 1}, "max_batch_tokens: Input should be greater than"),
    ],
    ids=["Ingress", "CacheLookup", "Embedder", "EmbedServer", "out of bounds"],
)
async def test_reconfigure_rejects_invalid_settings_before_any_change(
    deployment: Any, user_config: dict[str, int], message: str
) -> None:
    replica = Mock(settings_type=getattr(deployment, "settings_type", None))
    with pytest.raises(ConfigurationError, match=message):
        await deployment.reconfigure(replica, user_config, RANK)
    assert replica.mock_calls == []
