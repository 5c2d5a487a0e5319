"""What both clients log: what failed and what they did about it, never a text or a key."""

import logging
import re
from typing import Any

import pytest

from embedserve_client import NetworkError
from embedserve_client.fallback import Fallback
from tests.embedserve_client.scripted_server import ScriptedServer, disconnect, error
from tests.embedserve_client.test_fallback import Clock, StubModel


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture) -> "Messages":
    """The messages of the client at INFO."""
    caplog.set_level(logging.INFO, "embedserve_client")
    return Messages(caplog)


class Messages:
    """The client's messages so far."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    def read(self) -> list[str]:
        """Returns the new messages."""
        records = [r for r in self._caplog.records if r.name.startswith("embedserve_client.")]
        self._caplog.clear()
        return [record.getMessage() for record in records]


def test_retries(make_client: Any, server: ScriptedServer, messages: Messages) -> None:
    client = make_client(server.url, api_key="s3cret-key")
    server.script = [error(503, "no room for 'my text'"), disconnect, error(429)]
    client.embed(["my text"])
    lines = messages.read()
    assert [re.sub(r"\d+\.\d+ s", "n s", line) for line in lines] == [
        "Retry 1 in n s: SERVER_ERROR, status 503",
        "Retry 2 in n s: NETWORK_ERROR",
        "Retry 3 in n s: RATE_LIMITED, status 429",
    ]
    client.embed(["my text"])
    assert messages.read() == []


def test_fallback_and_return(make_client: Any, server: ScriptedServer, messages: Messages) -> None:
    clock = Clock()
    client = make_client(server.url, fallback=Fallback(StubModel(), clock), max_retries=0)
    server.script = [disconnect]
    for _ in range(3):
        assert client.embed(["my text"]).source == "local"
    assert messages.read() == [
        "The service is unavailable (NETWORK_ERROR). StubModel('stub') computes until it is back."
    ]
    clock.now += 1.5
    assert client.embed(["my text"]).source == "service"
    assert messages.read() == ["The service is back."]


def test_nothing_is_logged_above_info(make_client: Any, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(NetworkError):
        make_client("http://127.0.0.1:9").embed(["a"])
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []
