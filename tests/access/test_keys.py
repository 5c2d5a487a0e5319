import asyncio
import contextlib
import hmac
import json
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import yaml

from serve_app.access.keys import KeyRing, digest, generate_key
from serve_app.config import AccessSettings
from serve_app.errors import ConfigurationError

LIMIT_S = 30


def entry(name: str, key: str, **more: object) -> dict[str, object]:
    return {"name": name, "sha256": digest(key), **more}


def settings(*entries: dict[str, object], **more: object) -> AccessSettings:
    return AccessSettings.model_validate({"keys": entries, **more})


def new_ring(*entries: dict[str, object], **more: object) -> KeyRing:
    ring = KeyRing(poll_every_s=0.01)
    ring.apply(settings(*entries, **more))
    return ring


def key_name(ring: KeyRing, presented: str) -> str | None:
    """Returns the name of a key; None if it is unknown."""
    key = ring.find(presented)
    return None if key is None else key.name


def write(file: Path, *entries: dict[str, object]) -> str:
    """Replaces the file atomically."""
    new = file.with_suffix(".new")
    new.write_text(yaml.safe_dump({"keys": list(entries)}), "utf-8")
    new.replace(file)
    return str(file)


@contextlib.asynccontextmanager
async def watched(ring: KeyRing) -> AsyncIterator[None]:
    task = asyncio.create_task(ring.watch())
    try:
        yield
    finally:
        assert not task.done()
        task.cancel()


async def wait_until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def no_secret_in_the_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.DEBUG)
    yield
    assert "s3cret" not in caplog.text


def test_a_generated_key_is_random_and_fits_a_header() -> None:
    generated = {generate_key() for _ in range(100)}
    assert len(generated) == 100
    for key in generated:
        assert key.startswith("es-")
        assert len(key) == 3 + 43
        assert set(key) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")


def test_a_digest_is_a_plain_sha256() -> None:
    assert digest("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_only_listed_keys_are_known() -> None:
    generated = {f"key-{i}": generate_key() for i in range(300)}
    ring = new_ring(*(entry(name, key) for name, key in generated.items()))
    for name, key in generated.items():
        assert key_name(ring, key) == name
        for wrong in (key[:-1], key + "x", key.swapcase(), digest(key)):
            assert key_name(ring, wrong) is None
    for invalid in ("", "schlüssel", "\udcff", "x" * 100_000, "\x00"):
        assert key_name(ring, invalid) is None


def test_digests_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[str, str]] = []
    compare = hmac.compare_digest

    def record(a: str, b: str) -> bool:
        compared.append((a, b))
        return compare(a, b)

    monkeypatch.setattr(hmac, "compare_digest", record)
    sha256 = digest("s3cret")
    near = sha256[:-1] + ("0" if sha256[-1] != "0" else "1")
    ring = new_ring({"name": "near", "sha256": near})
    assert key_name(ring, "s3cret") is None
    assert compared == [(near, sha256)]
    ring = new_ring({"name": "near", "sha256": near}, entry("same", "s3cret"))
    assert key_name(ring, "s3cret") == "same"


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (entry("a", "other"), "Two API keys have the name 'a'"),
        (entry("b", "s3cret"), "'a' and 'b' are identical"),
    ],
)
@pytest.mark.parametrize("source", ["keys", "file", "variable"])
def test_equal_names_or_equal_keys_are_an_error(
    second: dict[str, object],
    message: str,
    source: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EMBEDSERVE_KEYS", json.dumps({"keys": [second]}))
    sources: dict[str, dict[str, object]] = {
        "keys": {},
        "file": {"keys_file": write(tmp_path / "keys.yaml", second)},
        "variable": {"keys_env": "EMBEDSERVE_KEYS"},
    }
    entries = [entry("a", "s3cret"), *([second] if source == "keys" else [])]
    with pytest.raises(ConfigurationError, match=message):
        new_ring(*entries, **sources[source])


def test_keys_of_all_sources_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys.json"
    file.write_text(json.dumps({"keys": [entry("b", "key-b")]}, indent="\t"), "utf-8")
    monkeypatch.setenv("EMBEDSERVE_KEYS", yaml.safe_dump({"keys": [entry("c", "key-c")]}))
    ring = new_ring(entry("a", "key-a"), keys_file=str(file), keys_env="EMBEDSERVE_KEYS")
    assert [key_name(ring, f"key-{name}") for name in "abcd"] == ["a", "b", "c", None]


def test_a_variable_that_is_not_set_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match=r"`access\.keys_env` names .*NOT_SET_ANYWHERE"):
        new_ring(keys_env="NOT_SET_ANYWHERE")


def test_an_empty_file_of_keys_requires_a_key(tmp_path: Path) -> None:
    assert not new_ring().required
    assert new_ring(entry("a", "key")).required
    ring = new_ring(keys_file=write(tmp_path / "keys.yaml"))
    assert ring.required
    assert key_name(ring, "") is None


def test_whether_any_key_has_a_limit(tmp_path: Path) -> None:
    assert not new_ring(entry("a", "key", models=["m"], lane="bulk")).is_limited
    assert new_ring(entry("b", "other"), entry("a", "key", concurrent_tokens=5)).is_limited
    file = write(tmp_path / "keys.yaml", entry("a", "key", requests_per_minute=5))
    assert new_ring(keys_file=file).is_limited


INVALID = [
    "",
    "keys",
    "keys: [",
    "- s3cret\n\t- x",
    "keys: s3cret",
    "s3cret: []",
    "[]",
    '{"keys": [{"s3cret": 1}]}',
    "keys: [{name: a, sha256: s3cret}]",
    "keys: [{name: 's3cret key', sha256: " + "0" * 64 + "}]",
    "keys: {s3cret: a}",
    "keys: [{name: a, sha256: " + "0" * 64 + ", lane: s3cret}]",
    "keys: [{name: a, sha256: " + "0" * 64 + ", requests_per_minute: 0}]",
    "keys: 2024-99-99",
    "[" * 100_000,
    "\x00",
    "keys: !!python/object:os.system {}",
]


@pytest.mark.parametrize("content", INVALID, ids=lambda content: repr(content[:40]))
def test_an_invalid_file_is_an_error_at_the_start(content: str, tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(content, "utf-8")
    with pytest.raises(ConfigurationError, match=r"access\.keys_file") as caught:
        new_ring(keys_file=str(file))
    assert "s3cret" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_an_unreadable_file_is_an_error_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="can't be read: No such file"):
        new_ring(keys_file=str(tmp_path / "none"))
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match="can't be read: it isn't UTF-8"):
        new_ring(keys_file=str(tmp_path / "bytes"))


async def test_a_changed_file_is_applied_without_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    ring = new_ring(entry("fixed", "s3cret-0"), keys_file=write(file, entry("a", "s3cret-a")))
    async with watched(ring):
        write(file, entry("a", "s3cret-a"), entry("b", "s3cret-b", tokens_per_minute=5))
        await wait_until(lambda: key_name(ring, "s3cret-b") == "b")
        assert key_name(ring, "s3cret-a") == "a"
        assert ring.is_limited
        write(file, entry("b", "s3cret-b"))
        await wait_until(lambda: key_name(ring, "s3cret-a") is None)
        assert not ring.is_limited
        write(file)
        await wait_until(lambda: key_name(ring, "s3cret-b") is None)
        assert key_name(ring, "s3cret-0") == "fixed"
        assert ring.required


async def test_a_change_is_detected_despite_equal_size_and_time(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    ring = new_ring(keys_file=write(file, entry("a", "s3cret-a")))
    before = file.stat()
    async with watched(ring):
        file.write_text(file.read_text("utf-8").replace(digest("s3cret-a"), digest("s3cret-b")))
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        await wait_until(lambda: key_name(ring, "s3cret-b") == "a")
        assert key_name(ring, "s3cret-a") is None


@pytest.mark.parametrize("fault", ["invalid", "removed", "directory", "bytes", "duplicate"])
async def test_while_the_file_is_invalid_its_previous_keys_stay(
    fault: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "keys.yaml"
    ring = new_ring(entry("z", "s3cret-z"), keys_file=write(file, entry("a", "s3cret-a")))
    async with watched(ring):
        match fault:
            case "invalid":
                file.write_text("keys: [{name: b, sha256: s3cret", "utf-8")
            case "removed":
                file.unlink()
            case "directory":
                file.unlink()
                file.mkdir()
            case "bytes":
                file.write_bytes(b"s3cret\xff")
            case "duplicate":
                write(file, entry("z", "s3cret-b"))
        await wait_until(lambda: "stay valid" in caplog.text)
        await asyncio.sleep(0.1)  # further polls
        assert caplog.text.count("stay valid") == 1
        assert [key_name(ring, f"s3cret-{name}") for name in "az"] == ["a", "z"]
        more = [entry("z", "s3cret-z"), entry("y", "s3cret-y")]
        ring.apply(settings(*more, keys_file=str(file)))
        assert [key_name(ring, f"s3cret-{name}") for name in "azy"] == ["a", "z", "y"]
        assert caplog.text.count("stay valid") == 1
        if file.is_dir():
            file.rmdir()
        write(file, entry("b", "s3cret-b"))
        await wait_until(lambda: key_name(ring, "s3cret-b") == "b")
        assert key_name(ring, "s3cret-a") is None


async def test_a_file_that_hangs_delays_no_request(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    ring = new_ring(keys_file=write(file, entry("a", "s3cret-a")))
    file.unlink()
    os.mkfifo(file)
    async with watched(ring):
        late = await asyncio.to_thread(file.open, "w", encoding="utf-8")  # waits for a poll
        ring.poll_every_s = 3600  # no later poll may correct the result of this one
        assert key_name(ring, "s3cret-a") == "a"
        write(tmp_path / "other", entry("b", "s3cret-b"))
        ring.apply(settings(keys_file=str(tmp_path / "other")))
        with late:  # the previous file no longer matters
            late.write(yaml.safe_dump({"keys": [entry("c", "s3cret-c")]}))
        await asyncio.sleep(0.1)
        assert [key_name(ring, f"s3cret-{name}") for name in "abc"] == [None, "b", None]


def test_invalid_settings_change_nothing(tmp_path: Path) -> None:
    ring = new_ring(entry("a", "s3cret-a"))
    for invalid in (
        settings(entry("b", "s3cret-b"), keys_file=str(tmp_path / "none")),
        settings(entry("b", "s3cret-b"), entry("b", "s3cret-c")),
        settings(entry("b", "s3cret-b"), keys_env="NOT_SET_ANYWHERE"),
    ):
        with pytest.raises(ConfigurationError):
            ring.apply(invalid)
        assert [key_name(ring, f"s3cret-{name}") for name in "ab"] == ["a", None]
