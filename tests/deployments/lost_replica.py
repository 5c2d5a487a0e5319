"""A program for `test_replica_keepalive.py`: a call to a replica on a machine that loses power.

Prints how the call ends.
"""

import asyncio
import sys
import tempfile
import time
from pathlib import Path

import grpc  # type: ignore[import-untyped]

from benchmarks.machines import Machine, isolate

_PORT = 30_000
_TIMEOUT_S = 60.0


class Replica(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers `ping` at once, and computes everything else without end."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        ends = details.method.endswith("ping")
        return grpc.unary_unary_rpc_method_handler(self._ping if ends else self._compute)

    async def _ping(self, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        return request

    async def _compute(self, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        await asyncio.sleep(_TIMEOUT_S)
        return request


async def serve() -> None:
    from ray.serve._private import replica

    import serve_app.deployments  # noqa: F401  # sets the keepalive

    server = replica.create_grpc_server_with_interceptors(  # type: ignore[attr-defined]
        asynchronous=True
    )
    server.add_generic_rpc_handlers((Replica(),))
    server.add_insecure_port(f"0.0.0.0:{_PORT}")
    await server.start()
    await server.wait_for_termination()


async def call(machine: Machine) -> str:
    from ray.serve._private.request_router import replica_wrapper

    import serve_app.deployments  # noqa: F401

    channel = replica_wrapper.init_grpc_channel(  # type: ignore[attr-defined]
        f"{machine.address}:{_PORT}", asynchronous=True
    )
    ping = channel.unary_unary("/replica/ping")
    await ping(b"", wait_for_ready=True, timeout=_TIMEOUT_S)
    computing = asyncio.ensure_future(channel.unary_unary("/replica/run")(b"a text"))
    await asyncio.sleep(0.5)  # until the machine has received it
    machine.disconnect()
    try:
        await computing
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    return "answered"


def main() -> None:
    isolate()
    with tempfile.TemporaryDirectory(prefix="es-") as directory:
        machine = Machine("worker", 1, {})
        machine.start([sys.executable, "-m", __spec__.name, "serve"], Path(directory, "log"))
        started_s = time.monotonic()
        print(asyncio.run(asyncio.wait_for(call(machine), _TIMEOUT_S)))
        print(f"{time.monotonic() - started_s:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    asyncio.run(serve()) if sys.argv[1:] else main()
