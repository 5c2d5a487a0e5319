"""What HAProxy knows after Ray has reloaded it, on which `simulation/haproxy.py` is built."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from ray.serve._private.haproxy import BackendConfig, HAProxyApi, ServerConfig

from serve_app.command.ports import free_port
from tests.proxy.conftest import proxy_config

_POST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"


class Replica:
    """A server that never finishes a POST."""

    def __init__(self) -> None:
        self.port = free_port()
        self.requests = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"POST"):
                self.requests += 1
                await reader.read()
            else:  # a health check
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        writer.close()


@asynccontextmanager
async def running_replicas(count: int) -> AsyncIterator[list[Replica]]:
    replicas = [Replica() for _ in range(count)]
    servers = [await asyncio.start_server(r.handle, "127.0.0.1", r.port) for r in replicas]
    try:
        yield replicas
    finally:
        for server in servers:
            server.close()


def backend(replicas: list[Replica]) -> dict[str, BackendConfig]:
    servers = [ServerConfig(f"r{r.port}", "127.0.0.1", r.port) for r in replicas]
    return {"app": BackendConfig(name="http-app", path_prefix="/", app_name="a", servers=servers)}


async def test_a_reloaded_haproxy_knows_nothing_of_requests_that_replicas_still_compute(
    tmp_path: Path,
) -> None:
    port = free_port()
    writers = list[asyncio.StreamWriter]()

    async def send(requests: int, replicas: list[Replica]) -> list[int]:
        """Returns how many requests each replica has once all have arrived."""
        for _ in range(requests):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(_POST)
            writers.append(writer)
        async with asyncio.timeout(30):
            while sum(r.requests for r in replicas) < len(writers):
                await asyncio.sleep(0.02)
        return [r.requests for r in replicas]

    async with running_replicas(2) as replicas:
        config_file = str(tmp_path / "haproxy.cfg")
        api = HAProxyApi(proxy_config(tmp_path, port), backend(replicas[:1]), config_file)
        await api.start()
        try:
            assert await send(6, replicas) == [6, 0]
            api.set_backend_configs(backend(replicas))
            await api.reload()
            assert await send(6, replicas) == [9, 3]
        finally:
            for writer in writers:
                writer.close()
            await api.stop()
