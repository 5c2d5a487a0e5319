import threading
import time
from pathlib import Path

import pytest

from serve_app.errors import ConfigurationError
from serve_app.model_prep.artifact import write_manifest
from serve_app.model_prep.artifact_cache import BuildStep, build_in_subprocess, get_or_build

STEP = BuildStep("the artifact", "no.such.module", ())


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "embedserve"


class Builder:
    """Writes an artifact without a process, and counts."""

    def __init__(self) -> None:
        self.builds = 0

    def __call__(self, step: BuildStep, folder: Path) -> None:
        self.builds += 1
        time.sleep(0.05)  # so that other threads ask meanwhile
        (folder / "content").write_bytes(b"numbers")
        write_manifest(folder)


@pytest.fixture
def build() -> Builder:
    return Builder()


def test_an_artifact_is_built_once(build: Builder, cache: Path) -> None:
    first = get_or_build("artifacts/one", STEP, build=build)
    assert first == get_or_build("artifacts/one", STEP, build=build) == cache / "artifacts/one"
    assert (first / "content").read_bytes() == b"numbers"
    assert build.builds == 1
    assert get_or_build("artifacts/two", STEP, build=build) != first
    assert build.builds == 2


@pytest.mark.parametrize("file", ["content", "digests.json"])
@pytest.mark.parametrize("content", [b"{}", b"[1]", b"", None])
def test_a_damaged_artifact_is_built_again(
    build: Builder, file: str, content: bytes | None
) -> None:
    folder = get_or_build("artifacts/one", STEP, build=build)
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    assert get_or_build("artifacts/one", STEP, build=build) == folder
    assert build.builds == 2
    assert (folder / "content").read_bytes() == b"numbers"


def test_what_a_killed_build_left_is_removed(build: Builder, cache: Path) -> None:
    abandoned, other = (cache / "artifacts" / f"building-{name}-x" for name in ("one", "two"))
    for folder in (abandoned, other):
        folder.mkdir(parents=True)
    get_or_build("artifacts/one", STEP, build=build)
    assert not abandoned.exists()
    assert other.exists()  # another process may be building it


def test_concurrent_calls_build_once(build: Builder) -> None:
    threads = [
        threading.Thread(target=get_or_build, args=("one", STEP), kwargs={"build": build})
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert build.builds == 1


def test_a_cache_folder_that_cannot_be_written_is_an_error_without_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ConfigurationError, match="the artifact: Not a directory") as raised:
        get_or_build("one", STEP)
    assert str(tmp_path) not in str(raised.value)


def test_a_failed_build_says_why_and_leaves_no_files(cache: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"Building the artifact failed: .*no\.such\.module"
    ):
        get_or_build("artifacts/one", STEP)
    assert [path.name for path in (cache / "artifacts").iterdir()] == ["one.lock"]


def test_a_build_without_a_manifest_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="`platform` wrote no complete artifact"):
        get_or_build("one", BuildStep("the artifact", "platform", ()))


def test_a_build_that_hangs_is_killed(tmp_path: Path) -> None:
    endless = BuildStep("the artifact", "http.server", ("0", "--directory"))
    with pytest.raises(ConfigurationError, match=r"^Building the artifact took longer than 1 s\.$"):
        build_in_subprocess(endless, tmp_path, timeout_s=1)
