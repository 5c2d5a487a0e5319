"""Ray's metrics agents, one on each machine: their addresses and their metrics."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from urllib.request import urlopen

import ray

from serve_app.errors import Unavailable

logger = logging.getLogger(__name__)


class MetricsAgents:
    """Reads the metrics of all machines. For one event loop.

    While Ray's head is down, nobody says which machines there are, and the question isn't answered
    before it is back: the machines are then those that it named last.
    """

    def __init__(
        self,
        list_addresses: Callable[[], list[str]] | None = None,
        *,
        timeout_s: float = 2.0,
    ) -> None:
        """Creates the reader.

        Args:
            list_addresses: returns `<host>:<port>` of each agent; may block. None: asks Ray.
            timeout_s: of the question, and of each agent.
        """
        self._list_addresses = list_addresses or _list_addresses
        self._timeout_s = timeout_s
        self._addresses: list[str] = []
        # A thread of its own, because it may block for long; one, so that they don't pile up.
        self._thread = ThreadPoolExecutor(1, "metrics-agents")
        self._question: asyncio.Future[list[str]] | None = None

    async def pages(self) -> list[str]:
        """Returns the Prometheus text of each agent that responds.

        Raises:
            Unavailable: Ray's head hasn't named the machines yet.
        """
        addresses = await self._known_addresses()
        pages = await asyncio.gather(
            *(asyncio.to_thread(_read, address, self._timeout_s) for address in addresses)
        )
        return [page for page in pages if page is not None]

    async def _known_addresses(self) -> list[str]:
        if self._question is None:
            loop = asyncio.get_running_loop()
            self._question = loop.run_in_executor(self._thread, self._list_addresses)
        question = self._question
        await asyncio.wait([question], timeout=self._timeout_s)
        if question.done():
            if self._question is question:
                self._question = None
            if (error := question.exception()) is None:
                self._addresses = question.result()
            else:
                logger.warning("Ray doesn't say which machines it has: %r", error)
        if not self._addresses:
            raise Unavailable("Ray's head doesn't respond; try again.")
        return self._addresses


def _list_addresses() -> list[str]:
    return [
        f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}"
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    ]


def _read(address: str, timeout_s: float) -> str | None:
    try:
        with urlopen(f"http://{address}/metrics", timeout=timeout_s) as reply:
            text: str = reply.read().decode()
            return text
    except (OSError, HTTPException, UnicodeDecodeError) as error:
        logger.warning("Could not read the metrics of %s: %r", address, error)
        return None
