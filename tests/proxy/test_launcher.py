"""HAProxy with the completed configuration, as clients see it."""

import asyncio
import json
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp
import httpx2
import openai
import pytest
import requests

from serve_app.command.ports import free_port
from tests.clients.node import environment
from tests.proxy.conftest import LAUNCHER, LEFT, PLAIN, Proxy, accepts, running_proxy, wait_until

#: Shorter than the server's work, longer than connecting takes.
_CLIENT_TIMEOUT_S = 0.5


def _error(reply: bytes) -> tuple[int, dict[str, object], bytes]:
    """Returns the status, the error and the head of a reply."""
    head, _, body = reply.partition(b"\r\n\r\n")
    error: dict[str, object] = json.loads(body)["error"]
    return int(head.split()[1]), error, head.lower()


def _outcome(proxy: Proxy, path: str) -> str:
    wait_until(lambda: path in proxy.upstream.outcomes)
    return proxy.upstream.outcomes[path]


@pytest.mark.parametrize("size", [100, 13_000, 100_000])
@pytest.mark.parametrize("pause_s", [0, 0.001, 0.01, 0.05, 0.1])
def test_a_client_that_leaves_is_noticed(proxy: Proxy, size: int, pause_s: float) -> None:
    path = f"{LEFT}{size}/{pause_s}"
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {size}\r\n\r\n"
    with proxy.connect() as connection:
        connection.sendall(head.encode())
        time.sleep(pause_s)
        connection.sendall(b"x" * size)
        time.sleep(0.1)
    assert _outcome(proxy, path) == "abandoned"


def _httpx(url: str, body: str) -> None:
    with pytest.raises(httpx2.TimeoutException):
        httpx2.post(url, content=body, timeout=_CLIENT_TIMEOUT_S)


def _requests(url: str, body: str) -> None:
    with pytest.raises(requests.Timeout):
        requests.post(url, data=body, timeout=_CLIENT_TIMEOUT_S)


def _openai(url: str, body: str) -> None:
    client = openai.OpenAI(
        base_url=url.removesuffix("/embeddings"),
        api_key="x",
        max_retries=0,
        timeout=_CLIENT_TIMEOUT_S,
    )
    with client, pytest.raises(openai.APITimeoutError):
        client.embeddings.create(model="m", input=body)


def _aiohttp(url: str, body: str) -> None:
    async def post() -> None:
        timeout = aiohttp.ClientTimeout(_CLIENT_TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            await session.post(url, data=body)

    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(post())


def _node_fetch(url: str, body: str) -> None:
    script = (
        f"const options = {{ method: 'POST', body: 'x'.repeat({len(body)}), "
        f"signal: AbortSignal.timeout({1000 * _CLIENT_TIMEOUT_S}) }}; "
        f"fetch('{url}', options).catch((error) => console.log(error.name))"
    )
    output = subprocess.run(
        ["node", "-e", script], env=environment(), capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "TimeoutError"


@pytest.mark.parametrize("size", [100, 13_000, 100_000])
@pytest.mark.parametrize("client", [_httpx, _requests, _openai, _aiohttp, _node_fetch])
def test_a_library_that_times_out_is_noticed(
    proxy: Proxy, client: Callable[[str, str], None], size: int
) -> None:
    path = f"{LEFT}{client.__name__}/{size}/embeddings"  # the OpenAI client appends the last part
    client(proxy.url + path, "x" * size)
    assert _outcome(proxy, path) == "abandoned"


@pytest.mark.parametrize("path", [b"/health", b"/v1/models"])
@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
def test_a_half_closed_connection_gets_the_reply_of_a_read(
    proxy: Proxy, method: bytes, path: bytes
) -> None:
    reply = proxy.exchange(method + b" " + path + b" HTTP/1.0\r\n\r\n", half_close=True)
    assert reply.startswith(b"HTTP/1.1 200 ")


def test_a_half_closed_post_is_a_client_that_left(proxy: Proxy) -> None:
    request = b"POST / HTTP/1.0\r\ncontent-length: 2\r\n\r\nab"
    status, error, _ = _error(proxy.exchange(request, half_close=True))
    assert (status, error["type"]) == (400, "invalid_request_error")
    assert "closed its sending side" in str(error["message"])


def test_a_control_character_in_a_header_gets_a_json_error(proxy: Proxy) -> None:
    request = b"GET /health HTTP/1.1\r\nhost: a\r\nx-a: \x01b\r\nconnection: close\r\n\r\n"
    status, error, head = _error(proxy.exchange(request))
    assert (status, error["code"]) == (400, "invalid_request")
    assert b"content-type: application/json" in head


@pytest.mark.parametrize(
    "header",
    [
        b"x-session-id: caf\xe9",
        b"x-request-timeout-seconds: \xff",
        b"x-request-timeout-seconds: 0.0001",
        b"x-request-disconnect-disabled: ?1",
        b"serve_multiplexed_model_id: \xff",
        b"serve-multiplexed-model-id: m",
        b"Serve_Multiplexed_Model_Id: m",
        b"x-request-id: \xff\xfe",
        b"x-request-id: two words",
    ],
)
def test_headers_that_ray_interprets_do_not_reach_it(proxy: Proxy, header: bytes) -> None:
    request = b"GET / HTTP/1.1\r\nhost: x\r\nx-other: kept\r\n" + header
    reply = proxy.exchange(request + b"\r\nconnection: close\r\n\r\n")
    assert reply.startswith(b"HTTP/1.1 200 ")
    sent = {"host": "x", "x-other": "kept", "x-forwarded-for": "127.0.0.1"}
    assert proxy.upstream.headers == sent


@pytest.mark.parametrize(
    ("limit", "passed_on"),
    [
        ("20", "22"),
        ("2.5", "4"),
        ("0.25", "2"),
        ("0", "2"),
        ("1e3", None),
        ("-1", None),
        ("inf", None),
        ("", None),
        ("99999999999999999999", None),
    ],
)
def test_ray_gets_the_time_limit_of_a_client(
    proxy: Proxy, limit: str, passed_on: str | None
) -> None:
    headers = {"x-request-timeout-s": limit}
    httpx2.post(f"{proxy.url}{PLAIN}503", headers=headers, timeout=30)
    assert proxy.upstream.headers["x-request-timeout-s"] == limit
    assert proxy.upstream.headers.get("x-request-timeout-seconds") == passed_on


def test_a_stream_of_events_has_no_time_limit(proxy: Proxy) -> None:
    httpx2.get(proxy.url, headers={"x-request-timeout-s": "2"}, timeout=30)
    assert "x-request-timeout-seconds" not in proxy.upstream.headers


@pytest.mark.parametrize(
    ("plain", "status", "code", "retry_after"),
    [
        (400, 400, "invalid_request", None),
        (408, 504, "deadline_exceeded", "1"),
        (500, 500, "internal_error", None),
        (503, 503, "unavailable", "1"),
    ],
)
def test_an_error_of_ray_in_plain_text_becomes_a_json_error(
    proxy: Proxy, plain: int, status: int, code: str, retry_after: str | None
) -> None:
    reply = httpx2.post(f"{proxy.url}{PLAIN}{plain}", timeout=30)
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers.get("retry-after") == retry_after


def test_replies_do_not_name_the_server_of_the_replicas(proxy: Proxy) -> None:
    for reply in (httpx2.get(proxy.url, timeout=30), httpx2.post(f"{proxy.url}/named", timeout=30)):
        assert reply.status_code == 200
        assert "server" not in reply.headers


def test_a_request_id_is_kept(proxy: Proxy) -> None:
    httpx2.get(proxy.url, headers={"x-request-id": "7f3a-1"}, timeout=30)
    assert proxy.upstream.headers["x-request-id"] == "7f3a-1"


def test_150_headers_and_20_kb_of_headers_are_accepted(proxy: Proxy) -> None:
    headers = {f"x-{i}": "a" * 130 for i in range(150)}
    status = httpx2.get(proxy.url, headers=headers, timeout=30).status_code
    assert status == 200


def test_a_large_body_can_be_refused_by_its_content_length(proxy: Proxy) -> None:
    with proxy.connect() as connection:
        connection.sendall(b"POST /early HTTP/1.1\r\nhost: x\r\ncontent-length: 999999999\r\n\r\n{")
        connection.settimeout(30)
        assert connection.recv(64).startswith(b"HTTP/1.1 413 ")


def test_a_header_that_never_ends_is_refused(proxy: Proxy) -> None:
    with proxy.connect() as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nhost: x\r\n")
        connection.settimeout(60)
        assert connection.recv(64).startswith(b"HTTP/1.1 408 ")


def test_a_service_without_application_is_starting(tmp_path: Path) -> None:
    with running_proxy(tmp_path, with_application=False) as proxy:
        reply = proxy.exchange(b"POST /v1/embeddings HTTP/1.0\r\n\r\n")
        status, error, head = _error(reply)
    assert (status, error["code"], error["type"]) == (503, "unavailable", "server_error")
    assert b"\r\nretry-after: 1\r\n" in head


def test_a_service_whose_replicas_are_down(tmp_path: Path) -> None:
    with running_proxy(tmp_path) as proxy:
        proxy.stop_upstream()
        with socket.socket():  # the port stays free
            for method in (b"GET", b"POST"):
                reply = proxy.exchange(method + b" /v1/models HTTP/1.0\r\n\r\n")
                status, error, head = _error(reply)
                assert (status, error["code"]) == (503, "unavailable")
                assert b"\r\nretry-after: 1\r\n" in head


def test_the_process_is_haproxy(proxy: Proxy) -> None:
    """Ray signals the process that it started, and compares its id with the one HAProxy reports."""
    command = Path(f"/proc/{proxy.process.pid}/cmdline").read_bytes().split(b"\0")
    assert Path(command[0].decode()).name == "haproxy"
    assert b"-dS" in command


def _write_configuration(folder: Path) -> tuple[Path, int]:
    """Returns a small configuration file and the port that it binds."""
    file, port = folder / "haproxy.cfg", free_port()
    file.write_text(
        f"""global
    maxconn 10
defaults
    mode http
    timeout client 5s
frontend http_frontend
    bind 127.0.0.1:{port}
    default_backend default_backend
backend default_backend
"""
    )
    return file, port


def test_haproxy_does_not_start_after_the_process_that_started_it_ended(tmp_path: Path) -> None:
    file, port = _write_configuration(tmp_path)
    completed = subprocess.run(
        ["sh", "-c", '"$@" &', "sh", *LAUNCHER, "-db", "-f", file],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
        start_new_session=True,
    )
    assert "has ended" in completed.stderr
    assert not accepts(port)
