import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from serve_app.command.scratch_dir import ScratchDir, check_socket_paths
from serve_app.errors import ConfigurationError

OWNER = """
import time
from serve_app.command.scratch_dir import ScratchDir
scratch = ScratchDir()
print(scratch.path, flush=True)
time.sleep(3600)
"""
LONG_AGO = 0


@pytest.fixture(autouse=True)
def temporary_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def make_old(directory: Path) -> None:
    """Sets a directory's age to more than that of one whose owner is about to lock it."""
    os.utime(directory, (LONG_AGO, LONG_AGO))


def test_it_is_private_and_removed_at_the_end() -> None:
    with ScratchDir() as scratch:
        assert scratch.path.stat().st_mode & 0o077 == 0
        (scratch.path / "file").touch()
    assert not scratch.path.exists()


def test_the_directory_of_a_killed_owner_is_removed_by_the_next_one() -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True)
    assert owner.stdout
    directory = Path(owner.stdout.readline().strip())
    make_old(directory)
    with ScratchDir():
        assert directory.is_dir()  # its owner lives
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    make_old(directory)
    with ScratchDir() as another:
        assert not directory.exists()
        assert another.path.is_dir()


def test_other_directories_remain(tmp_path: Path) -> None:
    others = [tmp_path / "embedserve-0123", tmp_path / "es-0123"]
    for other in others:
        other.mkdir()
        make_old(other)
    with ScratchDir():
        assert all(map(Path.is_dir, others))


@pytest.mark.parametrize(
    ("tmpdir", "ray_tmpdir", "named"),
    [
        ("/tmp", None, None),
        ("/tmp/" + "x" * 45, None, "`TMPDIR`"),
        ("/tmp/" + "x" * 45, "/tmp", None),
        ("/tmp/" + "x" * 95, "/tmp", "`TMPDIR`"),
        ("/tmp", "/tmp/" + "x" * 45, "`RAY_TMPDIR`"),
        ("/tmp/" + "ü" * 20, None, "`TMPDIR`"),
    ],
)
def test_a_directory_whose_sockets_would_have_too_long_paths_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmpdir: str, ray_tmpdir: str | None, named: str | None
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", tmpdir)
    monkeypatch.setenv("TMPDIR", tmpdir)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    if ray_tmpdir is not None:
        monkeypatch.setenv("RAY_TMPDIR", ray_tmpdir)
    if named is None:
        check_socket_paths()
    else:
        with pytest.raises(ConfigurationError, match=f"set {named} to a shorter one"):
            check_socket_paths()
