"""A server that does nothing: what is measured on it is the load generator itself."""

import asyncio
import sys
from typing import cast

from ..loop import run_async
from .base import Peer

_REPLY = b'HTTP/1.1 200 OK\r\ncontent-length: 27\r\n\r\n{"data":[{"embedding":[]}]}'

PEER = Peer(
    name="floor",
    title="a server that does nothing",
    command=lambda at: [at.python, "-m", __name__, str(at.port)],
)


class _Floor(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._transport.write(_REPLY)


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(_Floor, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    run_async(_serve(int(sys.argv[1])))
