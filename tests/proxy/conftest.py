"""A real HAProxy, started by the launcher with Ray's own configuration, before a small server."""

import asyncio
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import uvicorn
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.command.ports import free_port
from serve_app.proxy import guard

LAUNCHER = [sys.executable, "-m", "serve_app.proxy.launcher"]
#: HAProxy asks it again and again.
HEALTH_PATH = "/-/healthz"
#: Below this path, the name is the status of an error in plain text, like those of Ray.
PLAIN = "/plain/"
#: Below this path, a POST is computed until its client leaves.
LEFT = "/left/"


class Upstream:
    """An ASGI application that takes 2 s for a POST, as a replica does that computes."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}  #: of the last request of a client
        self.posts: set[str] = set()  #: paths of POSTs, also of those in progress
        self.outcomes: dict[str, str] = {}  #: path → outcome of the last POST

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if scope["path"] != HEALTH_PATH:
            self.headers = {k.decode(): v.decode("latin-1") for k, v in scope["headers"]}
        if scope["path"] == "/early":
            await send({"type": "http.response.start", "status": 413, "headers": []})
            await send({"type": "http.response.body", "body": b"too large"})
            return
        if scope["path"].startswith(PLAIN):
            status = int(scope["path"].removeprefix(PLAIN))
            headers = [(b"content-type", b"text/plain; charset=utf-8")]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": b"Request timed out."})
            return
        if scope["method"] == "POST":
            self.posts.add(scope["path"])
            while (await receive()).get("more_body"):
                pass
            disconnected = asyncio.create_task(_disconnect(receive))
            timeout_s = 60 if scope["path"].startswith(LEFT) else 2
            await asyncio.wait([disconnected], timeout=timeout_s)
            self.outcomes[scope["path"]] = "abandoned" if disconnected.done() else "completed"
            if disconnected.done():
                return
            disconnected.cancel()
        start: Message = {"type": "http.response.start", "status": 200, "headers": []}
        await send({**start, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Proxy:
    """A running HAProxy."""

    def __init__(
        self,
        port: int,
        upstream: Upstream,
        process: subprocess.Popen[bytes],
        stop_upstream: Callable[[], None],
    ) -> None:
        self.port = port
        self.stop_upstream = stop_upstream
        self.url = f"http://127.0.0.1:{port}"
        self.upstream = upstream
        self.process = process

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=15)

    def exchange(self, request: bytes, *, half_close: bool = False) -> bytes:
        """Sends bytes and returns everything until the proxy closes the connection."""
        with self.connect() as connection:
            connection.sendall(request)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            reply = bytearray()
            with suppress(ConnectionResetError):
                while chunk := connection.recv(65536):
                    reply += chunk
            return bytes(reply)


def wait_until(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "timeout"
        time.sleep(0.02)


def proxy_config(folder: Path, port: int) -> HAProxyConfig:
    """Returns the settings of an HAProxy whose files are in a folder, on free ports."""
    return HAProxyConfig(
        http_options=HTTPOptions(host="127.0.0.1", port=port),
        socket_path=str(folder / "admin.sock"),
        server_state_base=str(folder),
        server_state_file=str(folder / "server-state"),
        stats_port=free_port(),
        metrics_port=free_port(),
        metrics_enabled=False,
        nbthread=1,
        is_head=True,
    )


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def guards(folder: Path) -> list[psutil.Process]:
    """Returns the guard of the HAProxy whose files are in a folder."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            command = process.cmdline()
            if guard.__name__ in command and str(folder / "guard.sock") in command:
                found.append(process)
    return found


@contextmanager
def running_proxy(
    folder: Path, *, with_application: bool = True, application: ASGIApp | None = None
) -> Iterator[Proxy]:
    """Starts HAProxy before `application`; None: before the proxy's `upstream`."""
    upstream, upstream_port, port = Upstream(), free_port(), free_port()
    server = uvicorn.Server(
        uvicorn.Config(
            application or upstream, port=upstream_port, log_level="error", timeout_keep_alive=60
        )
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    config = proxy_config(folder, port)
    servers = [ServerConfig(name="replica", host="127.0.0.1", port=upstream_port)]
    backends = {
        "app": BackendConfig(name="http-app", path_prefix="/", app_name="app", servers=servers)
    }
    api = HAProxyApi(config, backends if with_application else {}, str(folder / "haproxy.cfg"))
    api._generate_config_file_internal()
    log = (folder / "haproxy.log").open("wb")
    process = subprocess.Popen(
        [*LAUNCHER, "-db", "-f", api.config_file_path, "-dR"], stdout=log, stderr=log
    )

    def stop_upstream() -> None:
        server.should_exit = True
        thread.join(10)

    try:
        wait_until(lambda: accepts(port))
        yield Proxy(port, upstream, process, stop_upstream)
    finally:
        for guard in guards(folder):
            guard.terminate()
            guard.wait(10)
        process.send_signal(signal.SIGTERM)
        process.wait(10)
        log.close()
        stop_upstream()


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with running_proxy(tmp_path_factory.mktemp("haproxy")) as running:
        yield running
