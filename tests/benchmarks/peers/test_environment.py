import subprocess
from pathlib import Path

import pytest

from benchmarks.peers import environment
from benchmarks.peers.environment import Environment


def test_it_is_made_once_for_each_set_of_requirements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "_ROOT", tmp_path)
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("# nothing\n")
    prepared: list[Path] = []
    made = Environment("fake", requirements, prepared.append)
    assert not made.ready
    made.install()
    assert made.ready
    assert prepared == [tmp_path / "fake"]
    assert subprocess.run([made.python, "-c", ""], check=True).returncode == 0
    requirements.write_text("# something else\n")
    assert not made.ready


def test_one_that_fails_is_not_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_ROOT", tmp_path)
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("no such requirement\n")
    made = Environment("fake", requirements)
    with pytest.raises(subprocess.CalledProcessError) as failed:
        made.install()
    assert "no such requirement" in failed.value.stderr
    assert not made.ready
