"""The service that is soaked: small caches and short lives, so that both are full soon."""

import copy
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import redis

from serve_app.command.service_process import ServiceFailure, ServiceProcess

from ..faults import service
from ..faults.service import FaultyService
from .sampler import FileCount, count_files, read_cache

STANDALONE = "standalone"
TOPOLOGIES = (*service.TOPOLOGIES, STANDALONE)
TTL_S = 60
#: Of Valkey, which evicts at this limit.
CACHE_MAX_BYTES = 24 << 20
#: Room for about a thousand vectors.
_L1_MAX_BYTES = 2 << 20
_REPLICAS = 3
_MODEL_DEPLOYMENTS = ("Embedder", "EmbedServer")
#: Three replicas share two cores.
_CPUS = 0.5
_DOWNSCALE_DELAY_S = 15.0
_POLL_S = 1.0


def soak_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a copy whose caches are full within minutes, and whose replicas are three at most."""
    changed = copy.deepcopy(dict(config))
    (application,) = changed["applications"]
    application["args"]["cache"] |= {"ttl_s": TTL_S, "max_bytes": CACHE_MAX_BYTES}
    http, *_ = application["deployments"]
    http["user_config"]["l1_max_bytes"] = _L1_MAX_BYTES
    for deployment in application["deployments"]:
        if deployment["name"] in _MODEL_DEPLOYMENTS:
            deployment["ray_actor_options"] = {"num_cpus": _CPUS}
            scaling = deployment["autoscaling_config"]
            scaling |= {"min_replicas": 1, "max_replicas": _REPLICAS}
            policy = scaling["policy"].setdefault("policy_kwargs", {})
            policy["downscale_delay_s"] = _DOWNSCALE_DELAY_S
    return changed


class SoakedService(FaultyService):
    """A running service whose files are below one folder, and which can be sampled."""

    def __init__(self, topology: str) -> None:
        """A service that isn't started.

        Args:
            topology: one of `TOPOLOGIES`.
        """
        self._is_standalone = topology == STANDALONE
        super().__init__("colocated" if self._is_standalone else topology, soak_config)
        self.topology = topology
        self._client: redis.Redis | None = None
        self._failure = ""

    @property
    def ray_env(self) -> dict[str, str]:
        """Environment variables that keep the service's Ray and its temporary files apart."""
        temporary = self.folder / "tmp"
        temporary.mkdir(exist_ok=True)
        return {**super().ray_env, "TMPDIR": str(temporary)}

    def watch(self) -> None:
        """Prints the output of the service from now on, and notices its end."""
        threading.Thread(target=self._watch, daemon=True).start()

    def wait(self, seconds: float) -> None:
        """Waits.

        Raises:
            ServiceFailure: the service can't serve any more.
        """
        end_s = time.monotonic() + seconds
        while (left_s := end_s - time.monotonic()) > 0:
            if self._failure:
                raise ServiceFailure(self._failure)
            time.sleep(min(_POLL_S, left_s))

    def _watch(self) -> None:
        try:
            self._process.watch()
        except ServiceFailure as failure:
            self._failure = str(failure)

    def _make_process(self) -> ServiceProcess:
        if not self._is_standalone:
            return super()._make_process()
        file = self.write_config("standalone.yaml", self.config)
        host, port = self.address()
        serve = ["-m", "serve_app.command.main", "serve", str(file), "--standalone"]
        return ServiceProcess([sys.executable, *serve], f"http://{host}:{port}", env=self.ray_env)

    def file_counts(self) -> Mapping[str, FileCount]:
        """Counts the files below the service's folder."""
        return count_files(self.folder)

    def cache_state(self) -> Mapping[str, int]:
        """Returns what Valkey holds; empty if it doesn't answer."""
        with suppress(redis.RedisError, FileNotFoundError):
            if self._client is None:  # one connection, because each one is a descriptor
                self._client = self.valkey()
            return read_cache(self._client)
        return {}
