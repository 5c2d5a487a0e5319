import asyncio
import logging
import pickle
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from serve_app.access import keys
from serve_app.access.entrance import Entrance, require_keys_beyond_loopback
from serve_app.access.keys import digest
from serve_app.access.quota import MemoryQuotaStore, Reservation
from serve_app.config import AccessSettings, ApiKey, IngressSettings
from serve_app.errors import ConfigurationError, Forbidden, QuotaExceeded, Unauthorized
from serve_app.metrics import KEY_REQUESTS, KEY_TOKENS, Meter

SECRET = "es-s3cret"


class SpyLedger(MemoryQuotaStore):
    """Remembers what is asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def open(self) -> None:
        self.calls.append("open")

    async def reserve(self, key: ApiKey, tokens: int) -> Reservation:
        self.calls.append("take")
        return await super().reserve(key, tokens)

    async def commit(self, reservation: Reservation, tokens: int | None) -> None:
        self.calls.append(f"settle {tokens}")
        await super().commit(reservation, tokens)

    async def close(self) -> None:
        self.calls.append("close")


def settings(**more: object) -> AccessSettings:
    alice = {"name": "alice", "sha256": digest(SECRET), **more}
    return AccessSettings.model_validate({"keys": [alice]})


@pytest.fixture
def ledger() -> SpyLedger:
    return SpyLedger()


@pytest.fixture
def meter() -> Meter:
    return Meter()


@pytest.fixture
async def access(ledger: SpyLedger, meter: Meter) -> AsyncIterator[Entrance]:
    access = Entrance(ledger, meter)
    yield access
    await access.close()
    assert ledger.calls[-1] == "close"


def alice(access: Entrance) -> ApiKey:
    key = access.identify(f"Bearer {SECRET}", None)
    assert key is not None
    return key


def counts(meter: Meter) -> dict[tuple[str, ...], float]:
    drained = meter.drain().items()
    return {(metric.name.removeprefix("embedserve_"), *tags): n for (metric, tags), n in drained}


async def test_without_keys_everybody_is_let_in(access: Entrance) -> None:
    for applied in (False, True):
        assert not access.required
        assert access.identify(None, None) is None
        assert access.identify("Bearer whatever", "anything") is None
        if not applied:
            access.apply(AccessSettings())


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
async def test_a_key_is_taken_from_either_header(
    access: Entrance, authorization: str | None, x_api_key: str | None
) -> None:
    access.apply(settings())
    assert access.required
    key = access.identify(authorization, x_api_key)
    assert key is not None
    assert key.name == "alice"


@pytest.mark.parametrize(
    ("authorization", "x_api_key", "words"),
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
async def test_who_has_no_key_stays_outside(
    access: Entrance,
    authorization: str | None,
    x_api_key: str | None,
    words: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    access.apply(settings())
    with pytest.raises(Unauthorized, match=words) as caught:
        access.identify(authorization, x_api_key)
    told = f"{caught.value!r} {caught.value.args} {caplog.text}"
    assert "wr0ng" not in told
    assert "s3cret" not in told
    assert digest(SECRET) not in told
    assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")


async def test_a_key_opens_only_its_models(
    access: Entrance, ledger: SpyLedger, meter: Meter
) -> None:
    access.apply(settings(models=["small"], requests_per_minute=5))
    await access.admit(alice(access), "small", 3)
    with pytest.raises(Forbidden, match="'alice' may not use the model 'large'") as caught:
        await access.admit(alice(access), "large", 3)
    assert (caught.value.status, caught.value.code) == (403, "model_not_allowed")
    assert ledger.calls == ["open", "take"]
    assert counts(meter)["key_requests", "alice", "model_not_allowed"] == 1
    access.apply(settings())
    await access.admit(alice(access), "large", 3)
    access.apply(settings(models=[]))
    with pytest.raises(Forbidden):
        await access.admit(alice(access), "small", 3)


async def test_a_key_without_limits_is_counted_and_never_held_up(
    access: Entrance, ledger: SpyLedger, meter: Meter
) -> None:
    access.apply(settings())
    reservation = await access.admit(alice(access), "m", 10**9)
    assert reservation.headers() == {}
    await access.release(reservation, 7)
    assert ledger.calls == []
    assert counts(meter) == {("key_requests", "alice", "admitted"): 1, ("key_tokens", "alice"): 7}


async def test_a_quota_is_taken_at_the_entrance_and_put_right_at_the_exit(
    access: Entrance, ledger: SpyLedger, meter: Meter
) -> None:
    access.apply(settings(tokens_per_minute=60))
    reservation = await access.admit(alice(access), "m", 60)
    assert reservation.headers()["x-ratelimit-remaining-tokens"] == "0"
    with pytest.raises(QuotaExceeded, match="60 tokens a minute") as caught:
        await access.admit(alice(access), "m", 60)
    assert (caught.value.status, caught.value.code) == (429, "rate_limit_exceeded")
    assert caught.value.headers["x-ratelimit-limit-tokens"] == "60"
    assert pickle.loads(pickle.dumps(caught.value)).headers == caught.value.headers
    await access.release(reservation, None)
    await access.release(await access.admit(alice(access), "m", 30), 30)
    assert ledger.calls[1:] == ["take", "take", "settle None", "take", "settle 30"]
    assert counts(meter) == {
        ("key_requests", "alice", "admitted"): 2,
        ("key_requests", "alice", "rate_limit_exceeded"): 1,
        ("key_tokens", "alice"): 30,
    }


async def test_a_limit_that_comes_with_a_change_opens_the_ledger(
    access: Entrance, ledger: SpyLedger
) -> None:
    access.apply(settings())
    assert ledger.calls == []
    access.apply(settings(concurrent_tokens=5))
    assert ledger.calls == ["open"]


async def test_a_quota_goes_on_through_a_change_of_the_settings(access: Entrance) -> None:
    access.apply(settings(requests_per_minute=1))
    await access.admit(alice(access), "m", 1)
    access.apply(settings(requests_per_minute=1, lane="bulk"))
    with pytest.raises(QuotaExceeded):
        await access.admit(alice(access), "m", 1)


async def test_the_file_of_keys_is_watched(
    access: Entrance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "_LOOK_EVERY_S", 0.01)
    file = tmp_path / "keys.yaml"
    file.write_text("keys: []")
    access.apply(AccessSettings(keys_file=str(file)))
    with pytest.raises(Unauthorized):
        access.identify(None, SECRET)
    listed = [key.model_dump() for key in settings().keys]
    file.write_text(yaml.safe_dump({"keys": [{**listed[0], "models": None}]}))
    async with asyncio.timeout(20):
        while True:
            try:
                assert access.identify(None, SECRET)
                break
            except Unauthorized:
                await asyncio.sleep(0.01)


def test_a_key_in_the_place_of_its_digest_is_in_no_error() -> None:
    wrong = {"access": {"keys": [{"name": "alice", "sha256": SECRET}]}}
    with pytest.raises(ValidationError) as caught:
        IngressSettings.model_validate(wrong)
    assert "sha256" in str(caught.value)
    assert "s3cret" not in str(caught.value)


LOOPBACK = ["127.0.0.1", "127.8.9.10", "::1", "[::1]", "localhost", None]
BEYOND = ["0.0.0.0", "::", "", "192.168.1.5", "example.org", "localhost.example.org", "127.0.0.1.x"]


@pytest.mark.parametrize("host", [*LOOPBACK, *BEYOND], ids=str)
def test_with_a_key_or_by_order_any_host_is_served(host: str | None) -> None:
    require_keys_beyond_loopback(host, settings())
    require_keys_beyond_loopback(host, AccessSettings(keys_file="anywhere"))
    require_keys_beyond_loopback(host, AccessSettings(keys_env="ANYTHING"))
    require_keys_beyond_loopback(host, AccessSettings(allow_unauthenticated=True))


@pytest.mark.parametrize("host", LOOPBACK, ids=str)
def test_without_keys_this_machine_is_served(host: str | None) -> None:
    require_keys_beyond_loopback(host, AccessSettings())


@pytest.mark.parametrize("host", BEYOND, ids=str)
def test_without_keys_no_other_machine_is_served(host: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        require_keys_beyond_loopback(host, AccessSettings())
    for way_out in ("embedserve key new", "host: 127.0.0.1", "allow_unauthenticated: true"):
        assert way_out in str(caught.value)


def test_the_metrics_of_keys_name_them_and_nothing_else() -> None:
    assert KEY_REQUESTS.tags == ("key", "outcome")
    assert KEY_TOKENS.tags == ("key",)
