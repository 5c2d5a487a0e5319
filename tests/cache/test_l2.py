import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest
from pydantic import SecretStr

from serve_app.cache.l2 import L2Cache
from serve_app.cache.stack import CacheStack
from serve_app.config import CacheConfig
from serve_app.errors import ConfigurationError, Unavailable
from serve_app.metrics import L2_UP, Meter
from serve_app.types import CacheState, TextGroup, Tier
from serve_app.valkey import shared_server
from serve_app.valkey.embedded import EmbeddedUnavailable
from serve_app.valkey.supervisor import parse_owner_pid
from tests.fakes import SPEC, FakeBackend
from tests.valkey_server import ValkeyProcess

LIMIT_S = 20.0


def config(folder: Path | None = None, **settings: object) -> CacheConfig:
    where = {} if folder is None else {"data_dir": str(folder)}
    return CacheConfig.model_validate({**where, **settings})


@contextlib.asynccontextmanager
async def opened(config: CacheConfig, space_id: str = SPEC.space_id) -> AsyncIterator[CacheStack]:
    """The tiers of a new process."""
    meter = Meter()
    second = L2Cache(config, space_id, service="test", owner_pid=os.getpid(), meter=meter)
    tiers = CacheStack(
        SPEC,
        FakeBackend().embed,
        l1_max_bytes=8 << 20,
        dtype=config.dtype,
        meter=meter,
        second=second,
    )
    tiers.start()
    try:
        yield tiers
    finally:
        await tiers.close()


async def until(tiers: CacheStack, state: str) -> None:
    async with asyncio.timeout(LIMIT_S):
        while tiers.state.state != state:
            await asyncio.sleep(0.05)


def supervisors() -> list[psutil.Process]:
    every = psutil.process_iter(["cmdline"])
    return [p for p in every if parse_owner_pid(p.info["cmdline"] or []) == os.getpid()]


@pytest.fixture
def no_supervisor_left() -> Iterator[None]:
    yield
    for process in supervisors():
        process.terminate()
        process.wait(LIMIT_S)


@pytest.mark.usefixtures("no_supervisor_left")
async def test_a_restarted_service_knows_what_it_knew(tmp_path: Path) -> None:
    group = TextGroup(tuple(f"text {i}" for i in range(2000)))
    async with opened(config(tmp_path)) as tiers:
        first = await tiers.embed(group)
        assert tiers.state == CacheState("up", None, "embedded")
    for process in supervisors():
        process.terminate()
        process.wait(LIMIT_S)
    async with opened(config(tmp_path)) as tiers:
        again = await tiers.embed(group)
        assert again.tiers.tolist() == [Tier.L2] * 2000
        assert again.values.tobytes() == first.values.tobytes()
        report = await tiers.report()
        assert report.store is not None
        assert report.store.entries == 2000
        assert report.store.max_bytes == config().max_bytes


@pytest.mark.usefixtures("no_supervisor_left")
async def test_a_server_that_was_given_up_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_server, "_MEND_EVERY_S", 0.1)
    async with opened(config(tmp_path)) as tiers:
        await until(tiers, "up")
        for process in supervisors():
            for each in (process, *process.children()):
                each.kill()
        await until(tiers, "degraded")
        await until(tiers, "up")


async def test_without_a_server_for_this_system_memory_remains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*args: object) -> None:
        raise EmbeddedUnavailable("There is no server for this system.")

    monkeypatch.setattr(shared_server, "lease_server", refuse)
    async with opened(config(tmp_path)) as tiers:
        group = TextGroup(("a",))
        assert [(await tiers.embed(group)).computed_count for _ in range(2)] == [1, 0]
        assert tiers.state == CacheState(
            "degraded", "There is no server for this system.", "embedded"
        )
        assert tiers.gauges()[L2_UP] == 0
    assert "going on with memory only" in caplog.text


async def test_memory_only_where_that_is_asked_for() -> None:
    async with opened(config(url="none")) as tiers:
        assert tiers.state == CacheState("off")
        assert (await tiers.report()).store is None
        await tiers.embed(TextGroup(("a", "b")))
        assert await tiers.purge() == 2


async def test_a_server_by_its_url_with_a_password_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_PASSWORD", "s3cret")
    with ValkeyProcess(tmp_path, password="s3cret") as server:
        told = config(url=server.url, password_env="TEST_PASSWORD")
        async with opened(told) as tiers:
            await until(tiers, "up")
            await tiers.embed(TextGroup(("a", "b")))
            assert tiers.gauges()[L2_UP] == 1
        assert server.call("DBSIZE") == 2
        async with opened(told, "another-space") as tiers:
            assert (await tiers.embed(TextGroup(("a",)))).computed_count == 1
        async with opened(told) as tiers:
            assert (await tiers.embed(TextGroup(("a",)))).computed_count == 0
            assert await tiers.purge() == 1 + 2
        assert server.call("DBSIZE") == 1
        server.kill()
        async with opened(told) as tiers:
            await until(tiers, "degraded")
            with pytest.raises(Unavailable):
                await tiers.purge()


def test_a_password_that_is_not_there_is_told() -> None:
    with pytest.raises(ConfigurationError, match="NOT_SET_ANYWHERE"):
        L2Cache(
            config(url="redis://127.0.0.1:1", password_env="NOT_SET_ANYWHERE"),
            "space",
            service="test",
            owner_pid=1,
            meter=Meter(),
        )


def test_a_password_in_the_url_is_in_no_text_of_the_settings() -> None:
    settings = CacheConfig(url=SecretStr("redis://:s3cret@host/0"))
    assert "s3cret" not in f"{settings!r} {settings} {settings.model_dump_json()}"
