"""All replicas of this replica's own deployment, asked together."""

import asyncio
import logging
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.request import urlopen

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from serve_app.metrics import Meter, Totals

logger = logging.getLogger(__name__)

_ANSWER_S = 5.0
_SCRAPE_S = 2.0
_OURS = "ray_embedserve_"


class IngressStats:
    """The Ingress replicas of one application."""

    def __init__(self, meter: Meter) -> None:
        """Takes what this replica counts, for when the others can't be asked."""
        self._meter = meter
        self._handle: DeploymentHandle[Any] | None = None

    async def totals(self) -> Totals:
        """What all replicas have answered; those that don't answer are left out."""
        replies = await self._ask("replica_totals")
        totals = Totals()
        for reply in replies or [self._meter.totals()]:
            totals = totals.plus(reply)
        return totals

    async def reset(self) -> None:
        """Has all replicas count `totals` from zero."""
        self._meter.reset()
        await self._ask("reset_totals")

    async def prometheus_text(self) -> str:
        """Every metric of the service on every node, as Ray's agents tell them (every 10 s)."""
        texts = await asyncio.to_thread(lambda: list(_scrape()))
        return "".join(f"{line}\n" for line in _merged(texts))

    async def _ask(self, method: str) -> list[Totals]:
        if self._handle is None:  # each handle has a router of its own, which stays
            context = serve.get_replica_context()
            self._handle = serve.get_deployment_handle(context.deployment, context.app_name)
        try:
            answers = await self._handle.broadcast(method).results_async(
                timeout_s=_ANSWER_S, return_exceptions=True
            )
        except Exception as error:
            logger.warning("The other Ingress replicas don't answer: %r", error)
            return []
        return [Totals(*answer) for answer in answers if isinstance(answer, tuple)]


def _scrape() -> Iterator[str]:
    """Of each node of the cluster what its agent tells."""
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if not node["Alive"]:
            continue
        address = f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}"
        try:
            with urlopen(f"http://{address}/metrics", timeout=_SCRAPE_S) as reply:
                yield reply.read().decode()
        except OSError as error:
            logger.warning("No metrics from the node %s: %s", address, error)


def _merged(texts: Iterable[str]) -> Iterator[str]:
    """Our lines of several expositions, each metric's together, as Prometheus wants them."""
    metrics: dict[str, list[str]] = {}
    heads: dict[str, dict[str, str]] = {}
    for text in texts:
        name = ""
        for line in text.splitlines():
            if line.startswith(("# HELP ", "# TYPE ")):
                _, kind, name, _ = line.split(" ", 3)
                heads.setdefault(name, {}).setdefault(kind, line)
            elif line.startswith(_OURS) and name.startswith(_OURS):
                metrics.setdefault(name, []).append(line)
    for name, lines in sorted(metrics.items()):
        yield from heads[name].values()
        yield from lines
