"""Calls between replicas: a long one goes on, and one to a machine that vanishes fails."""

import asyncio
import subprocess
import sys

import grpc  # type: ignore[import-untyped]
import pytest
from ray.serve._private import replica
from ray.serve._private.request_router import replica_wrapper

import serve_app.deployments  # noqa: F401  # sets the keepalive
from benchmarks.machines import unavailable_reason
from serve_app.command.ports import free_port
from tests.repo.source import ROOT

#: By default a server closes a connection after the third ping during which it sent nothing.
_CALL_S = 5.5
_PING_MS = 500


class LongCall(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers each call with its own request, after a while."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        return grpc.unary_unary_rpc_method_handler(self._answer)

    async def _answer(self, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        await asyncio.sleep(_CALL_S)
        return request


async def test_a_long_call_outlives_many_pings() -> None:
    port = free_port()
    server = replica.create_grpc_server_with_interceptors(  # type: ignore[attr-defined]
        asynchronous=True
    )
    server.add_generic_rpc_handlers((LongCall(),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    channel = replica_wrapper.init_grpc_channel(  # type: ignore[attr-defined]
        f"127.0.0.1:{port}", options=[("grpc.keepalive_time_ms", _PING_MS)], asynchronous=True
    )
    try:
        assert await channel.unary_unary("/service/method")(b"a text") == b"a text"
    finally:
        await channel.close()
        await server.stop(None)


def test_a_call_to_a_machine_that_vanishes_fails_so_that_it_can_be_repeated() -> None:
    if reason := unavailable_reason():
        pytest.skip(f"Several machines can't be run here: {reason}.")
    done = subprocess.run(
        [sys.executable, "-m", "tests.deployments.lost_replica"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == "UNAVAILABLE\n", done.stderr
