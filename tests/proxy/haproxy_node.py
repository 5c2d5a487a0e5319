"""A process that stands for a node of Ray in `test_guard.py`: it starts actors that manage HAProxy.

An actor is a child process with Ray's own class. The node receives commands, and answers each:
`actor STATE` starts an actor, `kill` kills it, and `reload STATE` lets it reload HAProxy. The state
is `ready`, `empty` (Ray has no replicas yet) or `broken` (HAProxy refuses the configuration).
"""

import asyncio
import os
import signal
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from ray.serve._private.haproxy import BackendConfig, HAProxyApi, ServerConfig

from tests.proxy.conftest import proxy_config


def _backends(state: str, upstream_port: int) -> dict[str, BackendConfig]:
    if state == "empty":
        return {}
    host = "not a host" if state == "broken" else "127.0.0.1"
    server = ServerConfig(name="replica", host=host, port=upstream_port)
    return {
        "app": BackendConfig(name="http-app", path_prefix="/", app_name="app", servers=[server])
    }


async def _serve(folder: Path, port: int, upstream_port: int, commands: Connection) -> None:
    """Starts HAProxy at the first state that arrives, and reloads it at each further one."""
    api = HAProxyApi(proxy_config(folder, port), config_file_path=str(folder / "haproxy.cfg"))
    step = api.start
    while True:
        api.set_backend_configs(_backends(await asyncio.to_thread(commands.recv), upstream_port))
        try:
            await step()
            commands.send("done")
        except RuntimeError as error:
            commands.send(f"failed: {error!r}")
        step = api.reload


def _run_actor(
    folder: Path, port: int, upstream_port: int, commands: Connection, other_end: Connection
) -> None:
    os.setpgid(0, 0)
    other_end.close()  # so that the actor reads the end of the node
    with suppress(EOFError):
        asyncio.run(_serve(folder, port, upstream_port, commands))


def run_node(folder: Path, port: int, upstream_port: int, connection: Connection) -> None:
    """Serves commands until the process is killed."""
    context = get_context("fork")
    actor: BaseProcess | None = None
    commands: Connection | None = None
    while True:
        command, _, state = connection.recv().partition(" ")
        if command == "kill":
            assert actor is not None
            assert actor.pid is not None
            os.killpg(actor.pid, signal.SIGKILL)  # as Ray does with an actor that has ended
            actor.join()
            connection.send("killed")
            continue
        if command == "actor":
            commands, end = context.Pipe()
            arguments = (folder, port, upstream_port, end, commands)
            actor = context.Process(target=_run_actor, args=arguments)
            actor.start()
        assert commands is not None
        commands.send(state)
        connection.send(commands.recv())
