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

from serve_app.access import keys
from serve_app.access.keys import KeyRing, digest, generate_key
from serve_app.config import AccessSettings
from serve_app.errors import ConfigurationError

LIMIT_S = 20


def entry(name: str, key: str, **more: object) -> dict[str, object]:
    return {"name": name, "sha256": digest(key), **more}


def settings(*entries: dict[str, object], **more: object) -> AccessSettings:
    return AccessSettings.model_validate({"keys": entries, **more})


def ring_of(*entries: dict[str, object], **more: object) -> KeyRing:
    ring = KeyRing()
    ring.apply(settings(*entries, **more))
    return ring


def found(ring: KeyRing, key: str) -> str | None:
    known = ring.find(key)
    return None if known is None else known.name


def write(file: Path, *entries: dict[str, object]) -> str:
    """As whoever writes configuration files with care: whole or not at all."""
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


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_LOOK_EVERY_S", 0.01)


@pytest.fixture(autouse=True)
def nothing_secret_in_the_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.DEBUG)
    yield
    assert "s3cret" not in caplog.text


def test_a_new_key_is_random_and_fits_a_header() -> None:
    made = {generate_key() for _ in range(100)}
    assert len(made) == 100
    for key in made:
        assert key.startswith("es-")
        assert len(key) == 3 + 43
        assert set(key) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")


def test_a_digest_is_what_other_tools_make_of_a_key() -> None:
    assert digest("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_each_key_is_known_and_no_other() -> None:
    made = {f"key-{i}": generate_key() for i in range(300)}
    ring = ring_of(*(entry(name, key) for name, key in made.items()))
    for name, key in made.items():
        assert found(ring, key) == name
        for wrong in (key[:-1], key + "x", key.swapcase(), digest(key)):
            assert found(ring, wrong) is None
    for nothing in ("", "schlüssel", "\udcff", "x" * 100_000, "\x00"):
        assert found(ring, nothing) is None


def test_the_whole_digest_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[str, str]] = []
    compare = hmac.compare_digest

    def spy(one: str, other: str) -> bool:
        compared.append((one, other))
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", spy)
    sha256 = digest("s3cret")
    near = sha256[:-1] + ("0" if sha256[-1] != "0" else "1")
    ring = ring_of({"name": "near", "sha256": near})
    assert found(ring, "s3cret") is None
    assert compared == [(near, sha256)]
    ring = ring_of({"name": "near", "sha256": near}, entry("same", "s3cret"))
    assert found(ring, "s3cret") == "same"


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (entry("a", "other"), "Two API keys have the name 'a'"),
        (entry("b", "s3cret"), "'a' and 'b' are one"),
    ],
)
@pytest.mark.parametrize("where", ["keys", "file", "variable"])
def test_two_of_one_name_or_one_key_are_an_error(
    second: dict[str, object],
    words: str,
    where: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EMBEDSERVE_KEYS", json.dumps({"keys": [second]}))
    places: dict[str, dict[str, object]] = {
        "keys": {},
        "file": {"keys_file": write(tmp_path / "keys.yaml", second)},
        "variable": {"keys_env": "EMBEDSERVE_KEYS"},
    }
    entries = [entry("a", "s3cret"), *([second] if where == "keys" else [])]
    with pytest.raises(ConfigurationError, match=words):
        ring_of(*entries, **places[where])


def test_keys_come_from_all_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys.json"
    file.write_text(json.dumps({"keys": [entry("b", "key-b")]}, indent="\t"), "utf-8")
    monkeypatch.setenv("EMBEDSERVE_KEYS", yaml.safe_dump({"keys": [entry("c", "key-c")]}))
    ring = ring_of(entry("a", "key-a"), keys_file=str(file), keys_env="EMBEDSERVE_KEYS")
    assert [found(ring, f"key-{name}") for name in "abcd"] == ["a", "b", "c", None]


def test_a_variable_that_is_not_set_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match=r"`access\.keys_env` names NOT_SET_ANYWHERE"):
        ring_of(keys_env="NOT_SET_ANYWHERE")


def test_where_keys_are_asked_for_none_lets_nobody_in(tmp_path: Path) -> None:
    assert not ring_of().required
    assert ring_of(entry("a", "key")).required
    ring = ring_of(keys_file=write(tmp_path / "keys.yaml"))
    assert ring.required
    assert found(ring, "") is None


def test_whether_any_key_has_a_limit(tmp_path: Path) -> None:
    assert not ring_of(entry("a", "key", models=["m"], lane="bulk")).is_limited
    assert ring_of(entry("b", "other"), entry("a", "key", concurrent_tokens=5)).is_limited
    file = write(tmp_path / "keys.yaml", entry("a", "key", requests_per_minute=5))
    assert ring_of(keys_file=file).is_limited


BROKEN = [
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


@pytest.mark.parametrize("content", BROKEN, ids=lambda content: repr(content[:40]))
def test_a_broken_file_is_an_error_at_the_start(content: str, tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(content, "utf-8")
    with pytest.raises(ConfigurationError, match=r"access\.keys_file") as caught:
        ring_of(keys_file=str(file))
    assert "s3cret" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_file_that_is_not_there_is_an_error_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="can't be read: No such file"):
        ring_of(keys_file=str(tmp_path / "none"))
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match="can't be read: it isn't UTF-8"):
        ring_of(keys_file=str(tmp_path / "bytes"))


async def test_a_changed_file_is_taken_without_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    ring = ring_of(entry("fixed", "s3cret-0"), keys_file=write(file, entry("a", "s3cret-a")))
    async with watched(ring):
        write(file, entry("a", "s3cret-a"), entry("b", "s3cret-b", tokens_per_minute=5))
        await until(lambda: found(ring, "s3cret-b") == "b")
        assert found(ring, "s3cret-a") == "a"
        assert ring.is_limited
        write(file, entry("b", "s3cret-b"))
        await until(lambda: found(ring, "s3cret-a") is None)
        assert not ring.is_limited
        write(file)
        await until(lambda: found(ring, "s3cret-b") is None)
        assert found(ring, "s3cret-0") == "fixed"
        assert ring.required


async def test_a_change_that_leaves_size_and_time_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    ring = ring_of(keys_file=write(file, entry("a", "s3cret-a")))
    about = file.stat()
    async with watched(ring):
        file.write_text(file.read_text("utf-8").replace(digest("s3cret-a"), digest("s3cret-b")))
        os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))
        await until(lambda: found(ring, "s3cret-b") == "a")
        assert found(ring, "s3cret-a") is None


@pytest.mark.parametrize("how", ["broken", "removed", "a folder", "bytes", "a double"])
async def test_while_the_file_is_broken_its_keys_stay(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "keys.yaml"
    ring = ring_of(entry("z", "s3cret-z"), keys_file=write(file, entry("a", "s3cret-a")))
    async with watched(ring):
        match how:
            case "broken":
                file.write_text("keys: [{name: b, sha256: s3cret", "utf-8")
            case "removed":
                file.unlink()
            case "a folder":
                file.unlink()
                file.mkdir()
            case "bytes":
                file.write_bytes(b"s3cret\xff")
            case "a double":
                write(file, entry("z", "s3cret-b"))
        await until(lambda: "stay valid" in caplog.text)
        await asyncio.sleep(0.1)  # some looks more
        assert caplog.text.count("stay valid") == 1
        assert [found(ring, f"s3cret-{name}") for name in "az"] == ["a", "z"]
        more = [entry("z", "s3cret-z"), entry("y", "s3cret-y")]
        ring.apply(settings(*more, keys_file=str(file)))
        assert [found(ring, f"s3cret-{name}") for name in "azy"] == ["a", "z", "y"]
        assert caplog.text.count("stay valid") == 1
        if file.is_dir():
            file.rmdir()
        write(file, entry("b", "s3cret-b"))
        await until(lambda: found(ring, "s3cret-b") == "b")
        assert found(ring, "s3cret-a") is None


async def test_a_file_that_hangs_holds_no_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys.yaml"
    ring = ring_of(keys_file=write(file, entry("a", "s3cret-a")))
    file.unlink()
    os.mkfifo(file)
    async with watched(ring):
        await asyncio.sleep(0.1)
        monkeypatch.setattr(keys, "_LOOK_EVERY_S", 3600)  # no look puts right what this one does
        assert found(ring, "s3cret-a") == "a"
        write(tmp_path / "other", entry("b", "s3cret-b"))
        ring.apply(settings(keys_file=str(tmp_path / "other")))
        with file.open("w", encoding="utf-8") as late:  # what the old file says no longer counts
            late.write(yaml.safe_dump({"keys": [entry("c", "s3cret-c")]}))
        await asyncio.sleep(0.1)
        assert [found(ring, f"s3cret-{name}") for name in "abc"] == [None, "b", None]


def test_settings_that_cannot_be_used_change_nothing(tmp_path: Path) -> None:
    ring = ring_of(entry("a", "s3cret-a"))
    for wrong in (
        settings(entry("b", "s3cret-b"), keys_file=str(tmp_path / "none")),
        settings(entry("b", "s3cret-b"), entry("b", "s3cret-c")),
        settings(entry("b", "s3cret-b"), keys_env="NOT_SET_ANYWHERE"),
    ):
        with pytest.raises(ConfigurationError):
            ring.apply(wrong)
        assert [found(ring, f"s3cret-{name}") for name in "ab"] == ["a", None]
