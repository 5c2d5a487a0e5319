import subprocess
from pathlib import Path

import pytest

from benchmarks.peers.environment import Environment


def test_an_environment_is_installed_once_for_each_content_of_its_requirements(
    tmp_path: Path,
) -> None:
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("# nothing\n")
    post_installs: list[Path] = []
    environment = Environment("fake", requirements, post_installs.append, parent=tmp_path)
    assert not environment.is_installed
    environment.install()
    assert environment.is_installed
    assert post_installs == [tmp_path / "fake"]
    assert subprocess.run([environment.python, "-c", ""], check=True).returncode == 0
    requirements.write_text("# something else\n")
    assert not environment.is_installed


def test_a_failed_installation_is_not_complete(tmp_path: Path) -> None:
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("no such requirement\n")
    environment = Environment("fake", requirements, parent=tmp_path)
    with pytest.raises(subprocess.CalledProcessError) as failed:
        environment.install()
    assert "no such requirement" in failed.value.stderr
    assert not environment.is_installed
