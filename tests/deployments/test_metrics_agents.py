"""The metrics of all machines are read while a machine or Ray's head doesn't respond."""

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from serve_app.command.ports import free_port
from serve_app.deployments.metrics_agents import MetricsAgents
from serve_app.errors import Unavailable

REPLIES = {
    "": b"HTTP/1.0 200 OK\r\n\r\nmetrics",
    "/nothing": b"",
    "/stopped": b"HTTP/1.0 200 OK\r\nContent-Length: 100\r\n\r\nmetrics",
    "/cut": b"HTTP/1.0 200 OK\r\n\r\nmetrics\xc3",
    "/garbage": b"metrics\r\n\r\n",
    "/error": b"HTTP/1.0 500 Internal Server Error\r\n\r\n",
}


class Agent(BaseHTTPRequestHandler):
    """A metrics agent. At other paths than `/metrics`, one that fails in the path's way."""

    def do_GET(self) -> None:
        self.wfile.write(REPLIES[self.path.partition("/metrics")[0]])

    def log_message(self, *arguments: object) -> None:
        """Prints nothing."""


@pytest.fixture
def address() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Agent) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


class Head:
    """Names the agents, or blocks until it is back."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = list(addresses)
        self.questions = 0
        self.is_up = threading.Event()
        self.is_up.set()

    def __call__(self) -> list[str]:
        self.questions += 1
        self.is_up.wait(30)
        return self.addresses


async def test_a_machine_that_does_not_respond_is_left_out(address: str) -> None:
    head = Head(f"127.0.0.1:{free_port()}", address)
    assert await MetricsAgents(head).pages() == ["metrics"]


@pytest.mark.parametrize("fault", [path for path in REPLIES if path])
async def test_a_machine_that_is_stopped_while_it_replies_is_left_out(
    address: str, fault: str
) -> None:
    assert await MetricsAgents(Head(f"{address}{fault}", address)).pages() == ["metrics"]


async def test_without_the_head_the_machines_are_those_that_it_named_last(address: str) -> None:
    head = Head(address)
    agents = MetricsAgents(head, timeout_s=2)
    assert await agents.pages() == ["metrics"]
    head.is_up.clear()
    assert await asyncio.gather(*(agents.pages() for _ in range(20))) == [["metrics"]] * 20
    assert head.questions == 2  # they share one thread, which waits for the head
    head.addresses = [address, address]
    head.is_up.set()
    async with asyncio.timeout(30):
        while await agents.pages() != ["metrics"] * 2:
            await asyncio.sleep(0.05)


async def test_before_the_head_has_named_any_the_request_can_be_repeated() -> None:
    head = Head()
    head.is_up.clear()
    agents = MetricsAgents(head, timeout_s=0.1)
    with pytest.raises(Unavailable):
        await agents.pages()
    head.is_up.set()  # so that the thread ends


async def test_a_head_that_fails_is_asked_again(address: str) -> None:
    outcomes: list[list[str] | Exception] = [[address], ConnectionError(), [address, address]]

    def answer() -> list[str]:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    agents = MetricsAgents(answer)
    assert [len(await agents.pages()) for _ in range(3)] == [1, 1, 2]
