import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from pydantic import SecretStr

from serve_app.cache.l2 import L2Cache
from serve_app.cache.stack import CacheStack
from serve_app.config import CacheConfig
from serve_app.errors import ConfigurationError, Unavailable
from serve_app.meter import Meter
from serve_app.metrics import L2_UP
from serve_app.types import CacheState, TextGroup, Tier, Vectors
from serve_app.valkey.remote_server import FindServer
from serve_app.valkey.server_address import ServerAddress
from serve_app.valkey.shared_server import SharedServer
from serve_app.valkey.supervisor import parse_owner_pid
from tests.fakes import SPEC, FakeBackend, as_vectors, fake_send
from tests.valkey_server import ValkeyProcess

LIMIT_S = 30.0


def config(data_dir: Path | None = None, **settings: object) -> CacheConfig:
    return CacheConfig.model_validate(
        {
            "data_dir": None if data_dir is None else str(data_dir),
            "timeout_s": 5,  # no read misses on a busy machine
            **settings,
        }
    )


@contextlib.asynccontextmanager
async def opened(
    config: CacheConfig,
    space_id: str = SPEC.space_id,
    *,
    keep_alive_every_s: float = 20.0,
    find_server: FindServer | None = None,
) -> AsyncIterator[CacheStack]:
    """The cache of a new process."""
    meter = Meter()
    server = SharedServer(
        config,
        service="test",
        owner_pid=os.getpid(),
        find_server=find_server,
        keep_alive_every_s=keep_alive_every_s,
    )
    l2 = L2Cache(config, server=server, meter=meter)
    cache = CacheStack(
        [replace(SPEC, space_id=space_id)],
        lambda space: fake_send(FakeBackend().run),
        l1_max_bytes=8 << 20,
        dtype=config.dtype,
        meter=meter,
        l2=l2,
    )
    cache.start()
    try:
        yield cache
    finally:
        await cache.close()


async def embed(cache: CacheStack, group: TextGroup) -> Vectors:
    (lookup,) = cache.lookups.values()
    return as_vectors(await lookup.run(group))


async def wait_for_state(cache: CacheStack, state: str) -> None:
    async with asyncio.timeout(LIMIT_S):
        while cache.state.state != state:
            await asyncio.sleep(0.05)


def supervisors() -> list[psutil.Process]:
    processes = psutil.process_iter(["cmdline"])
    return [p for p in processes if parse_owner_pid(p.info["cmdline"] or []) == os.getpid()]


@pytest.fixture
def no_remaining_supervisor() -> Iterator[None]:
    yield
    for process in supervisors():
        process.terminate()
        process.wait(LIMIT_S)


@pytest.mark.usefixtures("no_remaining_supervisor")
async def test_a_restarted_service_reads_its_previous_values(tmp_path: Path) -> None:
    group = TextGroup(tuple(f"text {i}" for i in range(2000)))
    async with opened(config(tmp_path)) as cache:
        first = await embed(cache, group)
        assert cache.state == CacheState("up", None, "embedded")
    for process in supervisors():
        process.terminate()
        process.wait(LIMIT_S)
    async with opened(config(tmp_path)) as cache:
        again = await embed(cache, group)
        assert again.tiers.tolist() == [Tier.L2] * 2000
        assert again.values.tobytes() == first.values.tobytes()
        report = await cache.report()
        assert report.store is not None
        assert report.store.entries == 2000
        assert report.store.max_bytes == config().max_bytes


@pytest.mark.usefixtures("no_remaining_supervisor")
async def test_a_server_without_a_supervisor_is_started_again(tmp_path: Path) -> None:
    async with opened(config(tmp_path), keep_alive_every_s=0.1) as cache:
        await wait_for_state(cache, "up")
        for process in supervisors():
            for member in (process, *process.children()):
                member.kill()
        await wait_for_state(cache, "degraded")
        await wait_for_state(cache, "up")


@pytest.mark.usefixtures("no_remaining_supervisor")
async def test_a_text_that_one_machine_computed_is_cached_for_others(tmp_path: Path) -> None:
    head = SharedServer(config(tmp_path), service="test", owner_pid=os.getpid())

    async def find() -> ServerAddress:
        return await asyncio.to_thread(head.open_port, "127.0.0.1")

    group = TextGroup(("a", "b"))
    async with opened(config(), find_server=find) as first:
        await wait_for_state(first, "degraded")  # nobody waits for the server
        assert (await embed(first, group)).tiers.tolist() == [Tier.COMPUTED] * 2
        await wait_for_state(first, "up")
        await embed(first, TextGroup(("c",)))
    async with opened(config(), find_server=find) as second, opened(config(tmp_path)) as local:
        await wait_for_state(second, "degraded")
        for cache in (second, local):
            await wait_for_state(cache, "up")
            assert (await embed(cache, TextGroup(("c",)))).tiers.tolist() == [Tier.L2]
    head.release()


async def test_without_an_embedded_server_the_memory_cache_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    not_a_directory = tmp_path / "file"
    not_a_directory.touch()
    async with opened(config(not_a_directory)) as cache:
        group = TextGroup(("a",))
        assert [(await embed(cache, group)).computed_count for _ in range(2)] == [1, 0]
        reason = f"No cache server can run in {not_a_directory}: File exists."
        assert cache.state == CacheState("degraded", reason, "embedded")
        assert cache.gauges()[L2_UP] == 0
    assert "using the memory cache only: No cache server can run" in caplog.text


async def test_without_a_configured_server_the_memory_cache_is_used() -> None:
    async with opened(config(url="none")) as cache:
        assert cache.state == CacheState("off")
        assert (await cache.report()).store is None
        await embed(cache, TextGroup(("a", "b")))
        assert await cache.purge() == 2


async def test_an_external_server_with_a_password_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_PASSWORD", "s3cret")
    with ValkeyProcess(tmp_path, password="s3cret") as server:
        settings = config(url=server.url, password_env="TEST_PASSWORD")
        async with opened(settings) as cache:
            await wait_for_state(cache, "up")
            await embed(cache, TextGroup(("a", "b")))
            assert cache.gauges()[L2_UP] == 1
        assert server.call("DBSIZE") == 2
        async with opened(settings, "another-space") as cache:
            assert (await embed(cache, TextGroup(("a",)))).computed_count == 1
        async with opened(settings) as cache:
            assert (await embed(cache, TextGroup(("a",)))).computed_count == 0
            assert await cache.purge() == 1 + 2
        assert server.call("DBSIZE") == 1
        server.kill()
        async with opened(settings) as cache:
            await wait_for_state(cache, "degraded")
            with pytest.raises(Unavailable):
                await cache.purge()


def test_a_missing_password_is_reported() -> None:
    settings = config(url="redis://127.0.0.1:1", password_env="NOT_SET_ANYWHERE")
    server = SharedServer(settings, service="test", owner_pid=1)
    with pytest.raises(ConfigurationError, match="NOT_SET_ANYWHERE"):
        L2Cache(settings, server=server, meter=Meter())


def test_settings_do_not_show_a_password_in_the_url() -> None:
    settings = CacheConfig(url=SecretStr("redis://:s3cret@host/0"))
    assert "s3cret" not in f"{settings!r} {settings} {settings.model_dump_json()}"
