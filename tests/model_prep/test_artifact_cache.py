"""What is made once: whole or made anew, by one of many that ask."""

import shutil
import threading
import time
from pathlib import Path

import pytest

from serve_app.errors import ConfigurationError
from serve_app.model_prep import artifact_cache
from serve_app.model_prep.artifact_cache import BuildStep, get_or_build, write_manifest

RECIPE = BuildStep("the thing", "no.such.module", ())


@pytest.fixture
def makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Stands in for the making; where it was asked to put the folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made: list[Path] = []

    def make(folder: Path, recipe: BuildStep) -> None:
        made.append(folder)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        time.sleep(0.05)  # so that others come while it is made
        (folder / "content").write_bytes(b"numbers")
        write_manifest(folder)

    monkeypatch.setattr(artifact_cache, "_make", make)
    return made


def test_it_is_made_once_and_then_found(makes: list[Path], tmp_path: Path) -> None:
    first = get_or_build("things/one", RECIPE)
    assert first == get_or_build("things/one", RECIPE) == tmp_path / "embedserve/things/one"
    assert (first / "content").read_bytes() == b"numbers"
    assert len(makes) == 1
    assert get_or_build("things/two", RECIPE) != first
    assert len(makes) == 2


@pytest.mark.parametrize("broken", ["content", "digests.json"])
@pytest.mark.parametrize("with_what", [b"{}", b"[1]", b"", None])
def test_what_is_not_whole_is_made_anew(
    makes: list[Path], broken: str, with_what: bytes | None
) -> None:
    place = get_or_build("things/one", RECIPE)
    (place / broken).unlink()
    if with_what is not None:
        (place / broken).write_bytes(with_what)
    assert get_or_build("things/one", RECIPE) == place
    assert len(makes) == 2
    assert (place / "content").read_bytes() == b"numbers"


def test_several_that_ask_at_once_make_it_once(makes: list[Path]) -> None:
    asking = [threading.Thread(target=get_or_build, args=("one", RECIPE)) for _ in range(8)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert len(makes) == 1


def test_a_cache_folder_that_cannot_be_written_is_told_without_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ConfigurationError, match="the thing: Not a directory") as failed:
        get_or_build("one", RECIPE)
    assert str(tmp_path) not in str(failed.value)


def test_what_cannot_be_made_says_why_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"Making the thing failed: .*no\.such\.module"):
        get_or_build("things/one", RECIPE)
    assert [place.name for place in (tmp_path / "embedserve/things").iterdir()] == ["one.lock"]


def test_what_is_broken_as_soon_as_made_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ConfigurationError, match="broken as soon as made"):
        get_or_build("one", BuildStep("the thing", "platform", ()))
