import asyncio
import logging
import pickle
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from serve_app.access.entrance import Entrance, require_keys_beyond_loopback
from serve_app.access.keys import KeyRing, digest
from serve_app.access.quota import MemoryQuotaStore, Reservation
from serve_app.config import AccessSettings, ApiKey, IngressSettings
from serve_app.errors import ConfigurationError, Forbidden, QuotaExceeded, Unauthorized
from serve_app.meter import Meter
from serve_app.metrics import KEY_REQUESTS, KEY_TOKENS

SECRET = "es-s3cret"


class RecordingQuotaStore(MemoryQuotaStore):
    """Records its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def open(self) -> None:
        self.calls.append("open")

    async def reserve(self, key: ApiKey, tokens: int, model: str = "") -> Reservation:
        self.calls.append("reserve")
        return await super().reserve(key, tokens, model)

    async def commit(self, reservation: Reservation, tokens: int | None) -> None:
        self.calls.append(f"commit {tokens}")
        await super().commit(reservation, tokens)

    async def close(self) -> None:
        self.calls.append("close")


def settings(**more: object) -> AccessSettings:
    alice = {"name": "alice", "sha256": digest(SECRET), **more}
    return AccessSettings.model_validate({"keys": [alice]})


@pytest.fixture
def quotas() -> RecordingQuotaStore:
    return RecordingQuotaStore()


@pytest.fixture
def meter() -> Meter:
    return Meter()


@pytest.fixture
async def entrance(quotas: RecordingQuotaStore, meter: Meter) -> AsyncIterator[Entrance]:
    entrance = Entrance(quotas, meter, KeyRing(poll_every_s=0.01))
    yield entrance
    await entrance.close()
    assert quotas.calls[-1] == "close"


def alice(entrance: Entrance) -> ApiKey:
    key = entrance.identify(f"Bearer {SECRET}", None)
    assert key is not None
    return key


def counts(meter: Meter) -> dict[tuple[str, ...], float]:
    drained = meter.drain().items()
    return {(metric.name.removeprefix("embedserve_"), *tags): n for (metric, tags), n in drained}


async def test_without_keys_every_request_is_admitted(entrance: Entrance) -> None:
    for applied in (False, True):
        assert not entrance.required
        assert entrance.identify(None, None) is None
        assert entrance.identify("Bearer whatever", "anything") is None
        if not applied:
            entrance.apply(AccessSettings())


@pytest.mark.parametrize(
    ("authorization", "x_api_key"),
    [
        (f"Bearer {SECRET}", None),
        (f"bearer {SECRET}", None),
        (f"BEARER   {SECRET} ", None),
        (None, SECRET),
        ("Basic YTpi", SECRET),
        ("", f" {SECRET}"),
        ("Bearer", SECRET),
        (f"Bearer {SECRET}", "wrong"),
    ],
)
async def test_either_header_identifies_the_key(
    entrance: Entrance, authorization: str | None, x_api_key: str | None
) -> None:
    entrance.apply(settings())
    assert entrance.required
    key = entrance.identify(authorization, x_api_key)
    assert key is not None
    assert key.name == "alice"


@pytest.mark.parametrize(
    ("authorization", "x_api_key", "message"),
    [
        (None, None, "needs an API key"),
        ("", "", "needs an API key"),
        ("Bearer ", None, "needs an API key"),
        (f"Basic {SECRET}", None, "needs an API key"),
        (SECRET, None, "needs an API key"),
        ("Bearer wr0ng", None, "doesn't know the API key"),
        (None, "wr0ng", "doesn't know the API key"),
        ("Bearer wr0ng", SECRET, "doesn't know the API key"),
        (f"Bearer {digest(SECRET)}", None, "doesn't know the API key"),
    ],
)
async def test_a_missing_or_unknown_key_is_unauthorized(
    entrance: Entrance,
    authorization: str | None,
    x_api_key: str | None,
    message: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    entrance.apply(settings())
    with pytest.raises(Unauthorized, match=message) as caught:
        entrance.identify(authorization, x_api_key)
    output = f"{caught.value!r} {caught.value.args} {caplog.text}"
    assert "wr0ng" not in output
    assert "s3cret" not in output
    assert digest(SECRET) not in output
    assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")


async def test_a_key_may_use_only_its_models(
    entrance: Entrance, quotas: RecordingQuotaStore, meter: Meter
) -> None:
    entrance.apply(settings(models=["small"], requests_per_minute=5))
    await entrance.admit(alice(entrance), "small", 3)
    with pytest.raises(Forbidden, match="'alice' may not use the model 'large'") as caught:
        await entrance.admit(alice(entrance), "large", 3)
    assert (caught.value.status, caught.value.code) == (403, "model_not_allowed")
    assert quotas.calls == ["open", "reserve"]
    assert counts(meter)["key_requests", "alice", "model_not_allowed", "large"] == 1
    entrance.apply(settings())
    await entrance.admit(alice(entrance), "large", 3)
    entrance.apply(settings(models=[]))
    with pytest.raises(Forbidden):
        await entrance.admit(alice(entrance), "small", 3)


async def test_a_key_without_limits_bypasses_the_quota_store(
    entrance: Entrance, quotas: RecordingQuotaStore, meter: Meter
) -> None:
    entrance.apply(settings())
    reservation = await entrance.admit(alice(entrance), "m", 10**9)
    assert reservation.headers() == {}
    await entrance.release(reservation, 7)
    assert quotas.calls == []
    assert counts(meter) == {
        ("key_requests", "alice", "admitted", "m"): 1,
        ("key_tokens", "alice", "m"): 7,
    }


async def test_a_quota_is_reserved_by_admit_and_committed_by_release(
    entrance: Entrance, quotas: RecordingQuotaStore, meter: Meter
) -> None:
    entrance.apply(settings(tokens_per_minute=60))
    reservation = await entrance.admit(alice(entrance), "m", 60)
    assert reservation.headers()["x-ratelimit-remaining-tokens"] == "0"
    with pytest.raises(QuotaExceeded, match="60 tokens a minute") as caught:
        await entrance.admit(alice(entrance), "m", 60)
    assert (caught.value.status, caught.value.code) == (429, "rate_limit_exceeded")
    assert caught.value.headers["x-ratelimit-limit-tokens"] == "60"
    assert pickle.loads(pickle.dumps(caught.value)).headers == caught.value.headers
    await entrance.release(reservation, None)
    await entrance.release(await entrance.admit(alice(entrance), "m", 30), 30)
    assert quotas.calls[1:] == ["reserve", "reserve", "commit None", "reserve", "commit 30"]
    assert counts(meter) == {
        ("key_requests", "alice", "admitted", "m"): 2,
        ("key_requests", "alice", "rate_limit_exceeded", "m"): 1,
        ("key_tokens", "alice", "m"): 30,
    }


async def test_a_new_limit_opens_the_quota_store(
    entrance: Entrance, quotas: RecordingQuotaStore
) -> None:
    entrance.apply(settings())
    assert quotas.calls == []
    entrance.apply(settings(concurrent_tokens=5))
    assert quotas.calls == ["open"]


async def test_a_quota_survives_a_change_of_settings(entrance: Entrance) -> None:
    entrance.apply(settings(requests_per_minute=1))
    await entrance.admit(alice(entrance), "m", 1)
    entrance.apply(settings(requests_per_minute=1, lane="bulk"))
    with pytest.raises(QuotaExceeded):
        await entrance.admit(alice(entrance), "m", 1)


async def test_the_file_of_keys_is_watched(entrance: Entrance, tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text("keys: []")
    entrance.apply(AccessSettings(keys_file=str(file)))
    with pytest.raises(Unauthorized):
        entrance.identify(None, SECRET)
    listed = [key.model_dump() for key in settings().keys]
    file.write_text(yaml.safe_dump({"keys": [{**listed[0], "models": None}]}))
    async with asyncio.timeout(20):
        while True:
            try:
                assert entrance.identify(None, SECRET)
                break
            except Unauthorized:
                await asyncio.sleep(0.01)


def test_errors_do_not_show_a_key_in_place_of_its_digest() -> None:
    wrong = {"access": {"keys": [{"name": "alice", "sha256": SECRET}]}}
    with pytest.raises(ValidationError) as caught:
        IngressSettings.model_validate(wrong)
    assert "sha256" in str(caught.value)
    assert "s3cret" not in str(caught.value)


LOOPBACK = ["127.0.0.1", "127.8.9.10", "::1", "[::1]", "localhost", None]
EXTERNAL = [
    "0.0.0.0",
    "::",
    "",
    "192.168.1.5",
    "example.org",
    "localhost.example.org",
    "127.0.0.1.x",
]


@pytest.mark.parametrize("host", [*LOOPBACK, *EXTERNAL], ids=str)
def test_with_keys_or_explicit_permission_any_host_is_served(host: str | None) -> None:
    require_keys_beyond_loopback(host, settings())
    require_keys_beyond_loopback(host, AccessSettings(keys_file="anywhere"))
    require_keys_beyond_loopback(host, AccessSettings(keys_env="ANYTHING"))
    require_keys_beyond_loopback(host, AccessSettings(allow_unauthenticated=True))


@pytest.mark.parametrize("host", LOOPBACK, ids=str)
def test_without_keys_loopback_is_served(host: str | None) -> None:
    require_keys_beyond_loopback(host, AccessSettings())


@pytest.mark.parametrize("host", EXTERNAL, ids=str)
def test_without_keys_no_external_host_is_served(host: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        require_keys_beyond_loopback(host, AccessSettings())
    for remedy in ("embedserve key new", "host: 127.0.0.1", "allow_unauthenticated: true"):
        assert remedy in str(caught.value)


def test_key_metrics_have_no_other_tags() -> None:
    assert KEY_REQUESTS.tags == ("key", "outcome", "model")
    assert KEY_TOKENS.tags == ("key", "model")
