"""A server that returns a constant response: its latency is the load generator's own."""

import asyncio
import sys
from typing import cast

from ..loop import run_async
from .base import Peer

_RESPONSE = b'HTTP/1.1 200 OK\r\ncontent-length: 27\r\n\r\n{"data":[{"embedding":[]}]}'

PEER = Peer(
    name="floor",
    title="a server that does nothing",
    command=lambda p: [p.python, "-m", __name__, str(p.port)],
)


class _ConstantResponse(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._transport.write(_RESPONSE)


async def _serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_ConstantResponse, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    run_async(_serve(int(sys.argv[1])))
