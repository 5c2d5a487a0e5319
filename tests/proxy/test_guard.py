"""The port of HTTP stays open while HAProxy, or the actor that manages it, is replaced."""

import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from pathlib import Path

import httpx2
import psutil
import pytest
import uvicorn

from serve_app.command.ports import free_port
from tests.proxy.conftest import Upstream, accepts, guards, wait_until
from tests.proxy.haproxy_node import run_node

#: Its processes are forked from one that has imported Ray.
_CONTEXT = get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.proxy.haproxy_node"])


class Node:
    """A node of Ray, as far as HAProxy is concerned, with an upstream server."""

    def __init__(self, folder: Path, upstream: Upstream, upstream_port: int) -> None:
        self.folder, self.port, self.upstream = folder, free_port(), upstream
        self._connection, end = _CONTEXT.Pipe()
        arguments = (folder, self.port, upstream_port, end)
        self.process = _CONTEXT.Process(target=run_node, args=arguments)
        self.process.start()

    def tell(self, command: str) -> str:
        """Sends a command and returns its answer."""
        self._connection.send(command)
        answer: str = self._connection.recv()
        return answer

    def haproxies(self) -> list[psutil.Process]:
        """Returns the running HAProxies."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.name() == "haproxy" and str(self.folder) in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def kill_haproxy(self) -> None:
        (process,) = self.haproxies()
        process.kill()
        process.wait(10)

    @contextmanager
    def load(self) -> Iterator[list[object]]:
        """Sends requests, each in a connection of its own; yields statuses and errors."""
        outcomes: list[object] = []
        is_over = threading.Event()

        def send() -> None:
            while not is_over.is_set():
                try:
                    url = f"http://127.0.0.1:{self.port}/"
                    outcomes.append(httpx2.get(url, timeout=10).status_code)
                except httpx2.HTTPError as error:
                    outcomes.append(error)
                time.sleep(0.005)

        thread = threading.Thread(target=send)
        thread.start()
        try:
            yield outcomes
            sent = len(outcomes)
            wait_until(lambda: len(outcomes) > sent + 5)
        finally:
            is_over.set()
            thread.join()


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    """Yields a node without an actor."""
    launcher = shutil.which("embedserve-haproxy", path=str(Path(sys.executable).parent))
    assert launcher is not None
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", launcher)
    upstream = Upstream()
    config = uvicorn.Config(upstream, port=free_port(), log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    running = Node(tmp_path, upstream, config.port)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.join()
        wait_until(lambda: not guards(tmp_path) and not running.haproxies())
        server.should_exit = True
        thread.join()


def test_clients_do_not_notice_that_haproxy_and_then_its_actor_are_replaced(node: Node) -> None:
    assert node.tell("actor ready") == "done"
    with node.load() as outcomes:
        node.kill_haproxy()
        wait_until(lambda: len(node.haproxies()) == 1)
        stand_in = node.haproxies()
        assert not _answers(node.folder)  # so that Ray kills the actor
        node.tell("kill")
        assert node.tell("actor empty") == "done"
        assert node.tell("reload ready") == "done"
        wait_until(lambda: len(node.haproxies()) == 1)
        assert node.haproxies() != stand_in
    # At most the request inside the killed process is lost.
    assert [o for o in outcomes if isinstance(o, httpx2.ConnectError)] == []
    assert sum(outcome != 200 for outcome in outcomes) <= 1


def test_clients_do_not_notice_that_the_actor_is_replaced(node: Node) -> None:
    node.tell("actor ready")
    url = f"http://127.0.0.1:{node.port}/long"
    replies: list[httpx2.Response] = []
    with node.load() as outcomes:
        thread = threading.Thread(target=lambda: replies.append(httpx2.post(url, timeout=20)))
        thread.start()
        wait_until(lambda: "/long" in node.upstream.posts)
        node.tell("kill")
        assert node.tell("actor empty") == "done"
        assert node.tell("reload ready") == "done"
        wait_until(lambda: len(node.haproxies()) == 1)
        thread.join()
    assert {*outcomes} == {200}
    assert [reply.status_code for reply in replies] == [200]


def test_each_haproxy_that_ends_is_replaced(node: Node) -> None:
    node.tell("actor ready")
    for _ in range(2):
        node.kill_haproxy()
        wait_until(lambda: len(node.haproxies()) == 1)
    assert httpx2.get(f"http://127.0.0.1:{node.port}/", timeout=30).status_code == 200


def test_haproxy_and_the_guard_end_with_the_node(node: Node) -> None:
    node.tell("actor ready")
    node.tell("kill")
    assert accepts(node.port)
    node.process.kill()
    wait_until(lambda: not accepts(node.port))
    wait_until(lambda: not guards(node.folder) and not node.haproxies())


def test_a_drained_haproxy_is_not_replaced(node: Node) -> None:
    node.tell("actor ready")
    for guard in guards(node.folder):
        guard.terminate()
    (haproxy,) = node.haproxies()
    haproxy.send_signal(signal.SIGUSR1)
    wait_until(lambda: not accepts(node.port))
    haproxy.wait(10)
    assert node.haproxies() == []


@pytest.mark.parametrize("also", ["nothing", "actor"])
def test_a_guard_that_is_killed_is_replaced_with_the_next_haproxy(node: Node, also: str) -> None:
    node.tell("actor ready")
    with node.load() as outcomes:
        (guard,) = guards(node.folder)
        guard.kill()
        guard.wait(10)
        if also == "actor":
            node.tell("kill")
            assert node.tell("actor ready") == "done"
        else:
            assert node.tell("reload ready") == "done"
        assert guards(node.folder) != [guard]
        wait_until(lambda: len(node.haproxies()) == 1)
        node.kill_haproxy()
        wait_until(lambda: len(node.haproxies()) == 1)
    assert sum(outcome != 200 for outcome in outcomes) <= 1


def test_a_refused_reload_leaves_the_haproxy_before_it(node: Node) -> None:
    node.tell("actor ready")
    before = node.haproxies()
    assert node.tell("reload broken").startswith("failed: ")
    assert node.haproxies() == before
    assert httpx2.get(f"http://127.0.0.1:{node.port}/", timeout=30).status_code == 200


def test_a_refused_start_leaves_no_port_open(node: Node) -> None:
    assert node.tell("actor broken").startswith("failed: ")
    wait_until(lambda: not accepts(node.port))


def test_a_taken_port_is_an_error_of_haproxy(node: Node) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", node.port))
        other.listen()
        assert "cannot bind socket" in node.tell("actor ready")


def _answers(folder: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(folder / "admin.sock")) == 0
