import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from serve_app.model_prep.artifact import Artifact, write_manifest
from serve_app.model_prep.artifact_cache import BuildStep, evict, get_or_build, list_artifacts

LABELS = {"model": "org/fake", "space": "f00d-fp32"}
#: Loads an artifact, says so, and waits for the end of its input.
USE = """
import sys
from serve_app.model_prep.artifact_cache import BuildStep, get_or_build
get_or_build(sys.argv[1], BuildStep("the artifact", "no.such.module", ()))
print("loaded", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "embedserve"


def write(step: BuildStep, folder: Path) -> None:
    (folder / "content").write_bytes(bytes(1000))
    write_manifest(folder)


def build(name: str, used_s: float = 0.0) -> Artifact:
    """Builds an artifact that nobody uses, not even this process, which holds another folder."""
    step = BuildStep("the artifact", "no.such.module", (), LABELS)
    folder = get_or_build(f"elsewhere/{name}", step, build=write)
    target = folder.parents[1] / "prepared" / name
    target.parent.mkdir(exist_ok=True)
    folder.rename(target)
    os.utime(target, (used_s, used_s))
    return Artifact(target)


class User:
    """Another process that uses an artifact."""

    def __init__(self, artifact: Artifact) -> None:
        name = f"{artifact.folder.parent.name}/{artifact.folder.name}"
        self._process = subprocess.Popen(
            [sys.executable, "-c", USE, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "loaded\n"

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


def names() -> list[str]:
    return [artifact.folder.name for artifact in list_artifacts()]


def test_artifacts_are_listed_by_their_last_use_with_labels_and_sizes() -> None:
    build("old", used_s=1)
    build("new", used_s=2)
    assert names() == ["new", "old"]
    artifact = list_artifacts()[0]
    assert artifact.labels == LABELS
    assert artifact.size_bytes > 1000
    assert artifact.used_s == 2
    assert abs(artifact.built_s - time.time()) < 600
    get_or_build("prepared/old", BuildStep("the artifact", "no.such.module", ()))
    assert names() == ["old", "new"]


def test_an_artifact_of_an_earlier_version_gets_labels_when_it_is_loaded() -> None:
    artifact = build("model")
    (artifact.folder / "labels.json").unlink()
    assert list_artifacts()[0].labels == {}
    get_or_build("prepared/model", BuildStep("the artifact", "no.such.module", (), LABELS))
    assert list_artifacts()[0].labels == LABELS


def test_an_artifact_in_use_is_not_removed_until_its_last_user_has_ended() -> None:
    artifact = build("model")
    first, second = User(artifact), User(artifact)
    try:
        assert artifact.is_in_use()
        assert not artifact.remove()
        first.kill()
        assert not artifact.remove()
        assert artifact.damage() == []
    finally:
        first.kill()
        second.kill()
    assert not artifact.is_in_use()
    assert artifact.remove()
    assert names() == []
    assert [path for path in artifact.folder.parent.iterdir() if path.is_dir()] == []


def test_processes_that_have_ended_leave_no_files() -> None:
    artifact = build("model")
    for _ in range(3):
        User(artifact).kill()
    assert len([*artifact.folder.parent.glob("*.user")]) == 1


def test_an_artifact_that_is_being_built_is_not_removed() -> None:
    artifact = build("model")
    with Artifact(artifact.folder).lock:
        assert not artifact.remove()
    assert artifact.remove()


def test_this_process_uses_what_it_has_loaded() -> None:
    artifact = build("model")
    get_or_build("prepared/model", BuildStep("the artifact", "no.such.module", ()))
    assert artifact.is_in_use()
    assert not artifact.remove()


def test_damage_names_each_file() -> None:
    artifact = build("model")
    (artifact.folder / "content").write_bytes(b"other")
    assert artifact.damage() == ["content has changed since it was written."]
    (artifact.folder / "content").unlink()
    assert artifact.damage() == ["content: No such file or directory."]
    (artifact.folder / "digests.json").write_text("{}")
    assert artifact.damage() == ["digests.json lists no files."]
    (artifact.folder / "digests.json").unlink()
    assert artifact.damage() == ["digests.json is missing or unreadable."]


def test_the_least_recently_used_artifacts_are_evicted(caplog: pytest.LogCaptureFixture) -> None:
    artifacts = {name: build(name, used_s=i) for i, name in enumerate(("a", "b", "c", "d"))}
    size = artifacts["a"].size_bytes
    evict(4 * size)
    assert (names(), caplog.records) == (["d", "c", "b", "a"], [])
    user = User(artifacts["a"])
    try:
        evict(2 * size)
    finally:
        user.kill()
    assert names() == ["a", "d"]  # `a` was loaded just now
    assert [message.split()[1] for message in caplog.messages] == ["b", "c"]
    assert all("org/fake" in message for message in caplog.messages)
    evict(0)
    assert names() == []


def test_what_is_in_use_stays_even_if_it_exceeds_the_limit() -> None:
    artifact = build("model")
    user = User(artifact)
    try:
        evict(0)
        assert names() == ["model"]
    finally:
        user.kill()
