"""Replies to requests whose body is still being sent, with real clients over sockets."""

import http.client
import json
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from itertools import repeat

import pytest

from serve_app.config import IngressSettings
from tests.clients.app_server import AppServer
from tests.clients.node import environment

MAX_BYTES = IngressSettings().max_body_bytes
JSON = "application/json"
#: Path, media type and the status that precedes the end of the body.
REFUSALS = [("/v1/embeddings", JSON, 413), ("/embed", "text/plain", 415), ("/nowhere", JSON, 404)]
FETCH = """
const [url, cases, maxBytes] = [process.argv[1], JSON.parse(process.argv[2]), process.argv[3]];
const block = new Uint8Array(65536);
const endless = () => new ReadableStream({ pull: (controller) => controller.enqueue(block) });
const statuses = [];
for (const size of [1.1, 4, null])
  for (const [path, type] of cases) {
    const body = size === null ? endless() : new Uint8Array(size * maxBytes);
    const headers = { "content-type": type };
    const reply = await fetch(url + path, { method: "POST", headers, body, duplex: "half" });
    await reply.text();
    statuses.push(reply.status);
  }
console.log(JSON.stringify(statuses));
process.exit(0);
"""


def address(server: AppServer) -> tuple[str, int]:
    host, port = server.url.removeprefix("http://").split(":")
    return host, int(port)


@pytest.fixture
def connection(server: AppServer) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection(*address(server), timeout=60)
    yield connection
    connection.close()


def test_node_s_fetch_gets_the_status(server: AppServer) -> None:
    cases = json.dumps([(path, media_type) for path, media_type, _ in REFUSALS])
    process = subprocess.run(
        ["node", "--input-type=module", "-e", FETCH, server.url, cases, str(MAX_BYTES)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout) == [status for _, _, status in REFUSALS] * 3


@pytest.mark.parametrize(("path", "media_type", "status"), REFUSALS)
@pytest.mark.parametrize("size", [1.1, 4.0])
def test_http_client_gets_the_status(
    connection: http.client.HTTPConnection, path: str, media_type: str, status: int, size: float
) -> None:
    body = bytes(int(size * MAX_BYTES))
    connection.request("POST", path, body, {"content-type": media_type})
    assert connection.getresponse().status == status


@pytest.mark.parametrize(("path", "media_type", "status"), REFUSALS)
def test_http_client_gets_the_status_when_it_stops_sending_an_endless_body(
    connection: http.client.HTTPConnection, path: str, media_type: str, status: int
) -> None:
    with pytest.raises(ConnectionError):
        connection.request(
            "POST", path, repeat(bytes(65536)), {"content-type": media_type}, encode_chunked=True
        )
    assert connection.getresponse().status == status


@pytest.mark.parametrize(("path", "media_type", "status"), REFUSALS)
def test_urllib_which_closes_the_connection_gets_the_status(
    server: AppServer, path: str, media_type: str, status: int
) -> None:
    body, headers = bytes(int(1.1 * MAX_BYTES)), {"content-type": media_type}
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(urllib.request.Request(server.url + path, body, headers))
    assert raised.value.code == status
    raised.value.close()


def test_a_connection_is_kept_after_a_refusal_of_a_small_body(
    connection: http.client.HTTPConnection,
) -> None:
    connection.request("POST", "/nowhere", bytes(200_000), {"content-type": JSON})
    reply = connection.getresponse()
    assert (reply.status, reply.getheader("connection")) == (404, None)
    reply.read()
    socket_before = connection.sock
    connection.request("POST", "/v1/embeddings", b'{"input": "a"}', {"content-type": JSON})
    assert connection.getresponse().status == 200
    assert connection.sock is socket_before


@pytest.mark.parametrize(("path", "media_type", "status"), REFUSALS)
def test_a_client_that_expects_100_continue_is_not_asked_for_its_body(
    server: AppServer, path: str, media_type: str, status: int
) -> None:
    head = (
        f"POST {path} HTTP/1.1\r\nhost: test\r\ncontent-type: {media_type}\r\n"
        f"content-length: {MAX_BYTES + 1}\r\nexpect: 100-continue\r\n\r\n"
    )
    with socket.create_connection(address(server), timeout=10) as client:
        client.sendall(head.encode())
        assert client.recv(100).startswith(f"HTTP/1.1 {status} ".encode())
