"""An embedded server that other machines use: two machines are two services of this one."""

import asyncio
import logging
import os
import pickle
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from serve_app.config import CacheConfig
from serve_app.errors import Unavailable
from serve_app.valkey.client import ping
from serve_app.valkey.embedded import running_servers
from serve_app.valkey.server_address import ServerAddress
from serve_app.valkey.shared_connection import SharedConnection
from serve_app.valkey.shared_server import SharedServer
from serve_app.valkey.supervisor import parse_owner_pid

LIMIT_S = 30.0
HOST = "127.0.0.1"


class Head:
    """The machine whose server all use."""

    def __init__(self, data_dir: Path) -> None:
        self.config = CacheConfig.model_validate(
            {"url": "embedded", "data_dir": str(data_dir), "timeout_s": 5, "max_bytes": 8 << 20}
        )
        self.shared = SharedServer(self.config, service="test", owner_pid=os.getpid())

    async def find(self) -> ServerAddress:
        """What the deployment on the head does for others."""
        return await asyncio.to_thread(self.shared.open_port, HOST)

    def processes(self) -> list[psutil.Process]:
        """Returns the supervisor and its server."""
        return [
            found
            for process in psutil.process_iter(["cmdline"])
            if parse_owner_pid(process.info["cmdline"] or []) == os.getpid()
            for found in (process, *process.children())
        ]

    def password_file(self) -> Path:
        (file,) = Path(str(self.config.data_dir)).glob("*/password")
        return file

    def stop(self) -> None:
        self.shared.release()
        for process in self.processes()[:1]:
            process.terminate()
            process.wait(LIMIT_S)


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    head = Head(tmp_path)
    yield head
    head.stop()


@asynccontextmanager
async def connection(
    config: CacheConfig,
    find: Callable[[], Awaitable[ServerAddress]] | None,
    reasons: list[str] | None = None,
) -> AsyncIterator[SharedConnection]:
    """Of a process on another machine; without `find` on the head."""
    server = SharedServer(config, service="test", owner_pid=os.getpid(), find_server=find)
    connection = SharedConnection(
        server,
        timeout_s=config.timeout_s,
        probe=lambda client: ping(client, b"probe"),
        on_down=([] if reasons is None else reasons).append,
        on_up=lambda: None,
    )
    connection.open()
    try:
        yield connection
    finally:
        await connection.close()


async def wait_for(connection: SharedConnection, state: str) -> None:
    async with asyncio.timeout(LIMIT_S):
        while connection.guarded is None or connection.state != state:
            await asyncio.sleep(0.02)


async def call(connection: SharedConnection, *command: str) -> object:
    assert connection.guarded is not None
    return await connection.guarded.client.execute_command(*command)


async def wait_for_call(connection: SharedConnection) -> None:
    async with asyncio.timeout(LIMIT_S):
        while True:
            try:
                await call(connection, "SET", "a", "1")
            except redis.ConnectionError:
                await asyncio.sleep(0.02)
            else:
                return


async def test_all_machines_use_the_server_of_the_head(head: Head) -> None:
    async with (
        connection(head.config, None) as local,
        connection(head.config, head.find) as first,
        connection(head.config, head.find) as second,
    ):
        for each in (local, first, second):
            await wait_for(each, "up")
        await call(local, "SET", "a", "1")
        assert [await call(each, "INCR", "a") for each in (first, second, local)] == [2, 3, 4]
    async with connection(head.config, None) as later:  # which needs the password
        await wait_for(later, "up")
        assert await call(later, "GET", "a") == b"4"


async def test_no_port_is_open_until_another_machine_asks(head: Head) -> None:
    async with connection(head.config, None) as local:
        await wait_for(local, "up")
        assert await call(local, "CONFIG", "GET", "port") == [b"port", b"0"]
        _, server = head.processes()
        assert [each.status for each in server.net_connections("inet")] == []
        address = await head.find()
        assert await head.find() == address
        listening = [each for each in server.net_connections("inet") if each.status == "LISTEN"]
        assert [tuple(each.laddr) for each in listening] == [(HOST, address.port)]


async def test_the_port_needs_a_password_that_is_in_no_command_line(head: Head) -> None:
    address = await head.find()
    for wrong in (None, "wrong"):
        with (
            redis.Redis(
                host=HOST, port=address.port, password=wrong, retry=Retry(NoBackoff(), 0)
            ) as client,
            pytest.raises(redis.AuthenticationError),
        ):
            client.ping()
    assert len(bytes.fromhex(address.password)) >= 16
    assert head.password_file().stat().st_mode & 0o077 == 0
    assert address.password not in repr(address) + f"{address} {[address]}"
    assert all(address.password not in " ".join(p.cmdline()) for p in head.processes())
    assert pickle.loads(pickle.dumps(address)) == address


async def test_each_server_has_a_password_of_its_own(head: Head, tmp_path: Path) -> None:
    other = SharedServer(head.config, service="other", owner_pid=os.getpid())
    try:
        passwords = [(await head.find()).password, other.open_port(HOST).password]
        assert len(set(passwords)) == 2
        urls = running_servers(tmp_path)
        assert [password for _, password in urls] == passwords
    finally:
        other.release()
        for process in head.processes()[2:3]:
            process.terminate()


async def test_a_restarted_server_is_found_again(head: Head) -> None:
    async with connection(head.config, head.find) as remote:
        await wait_for(remote, "up")
        _, server = head.processes()
        server.kill()
        await wait_for_call(remote)


async def test_a_server_at_another_address_is_found(head: Head, tmp_path: Path) -> None:
    new = Head(tmp_path / "new")
    heads = [head]
    try:
        async with connection(head.config, lambda: heads[0].find()) as remote:
            await wait_for(remote, "up")
            heads[0] = new
            head.stop()
            await wait_for_call(remote)
    finally:
        new.stop()


async def test_until_the_server_is_found_calls_fail_at_once_with_a_reason(head: Head) -> None:
    found = asyncio.Event()

    async def find() -> ServerAddress:
        await found.wait()
        return await head.find()

    reasons: list[str] = []
    async with connection(head.config, find, reasons) as remote:
        await wait_for(remote, "down")
        async with asyncio.timeout(0):  # expires as soon as the call waits for anything
            with pytest.raises(redis.ConnectionError):
                await call(remote, "GET", "a")
        assert reasons == ["no connection (the cache server of the head isn't found yet)"]
        found.set()
        await wait_for(remote, "up")


async def test_the_reason_of_the_head_is_told(head: Head, caplog: pytest.LogCaptureFixture) -> None:
    errors: list[Exception] = [Unavailable("There is no cache server."), RuntimeError("boom")]

    async def find() -> ServerAddress:
        if errors:
            raise errors.pop(0)
        return await head.find()

    caplog.set_level(logging.DEBUG)
    async with connection(head.config, find) as remote:
        await wait_for(remote, "up")
        password = (await head.find()).password
    assert "There is no cache server." in caplog.text
    assert "Ray's call to the head fails, RuntimeError" in caplog.text
    assert password not in caplog.text


async def test_an_address_that_is_not_of_this_machine(head: Head) -> None:
    with pytest.raises(OSError, match=r"192\.0\.2\.1|assign requested address"):
        head.shared.open_port("192.0.2.1")
    assert (await head.find()).host == HOST
