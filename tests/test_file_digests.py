import hashlib
import os
import time
from pathlib import Path

import pytest

from serve_app.models import file_digests
from serve_app.models.file_digests import FileDigests

CONTENT = b"a" * (2 << 20)
LATER_NS = time.time_ns() + 3600 * 1_000_000_000


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights.bin"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are read to the end."""
    paths, read = list[Path](), file_digests.sha256_of

    def recording_read(path: Path) -> str:
        paths.append(path)
        return read(path)

    monkeypatch.setattr(file_digests, "sha256_of", recording_read)
    return paths


def digests(file: Path, now_ns: int = LATER_NS) -> FileDigests:
    """Returns the digests as a new process finds them, when the file is old."""
    return FileDigests(file.parent / "digests", clock_ns=lambda: now_ns)


def test_a_second_process_does_not_read_the_file_again(file: Path, reads: list[Path]) -> None:
    expected = hashlib.sha256(CONTENT).hexdigest()
    assert [digests(file)(file) for _ in range(3)] == [expected] * 3
    assert reads == [file]


def test_a_change_is_found_even_if_size_and_time_are_the_former_ones(file: Path) -> None:
    digests(file)(file)
    status = file.stat()
    time.sleep(0.02)  # a coarse clock of the file system
    file.write_bytes(b"b" * len(CONTENT))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert digests(file)(file) == hashlib.sha256(b"b" * len(CONTENT)).hexdigest()


def test_a_file_that_takes_the_place_of_another_is_read(file: Path) -> None:
    digests(file)(file)
    other = file.with_name("other")
    other.write_bytes(b"c" * len(CONTENT))
    os.utime(other, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    other.replace(file)
    assert digests(file)(file) == hashlib.sha256(b"c" * len(CONTENT)).hexdigest()


def test_a_file_that_may_still_be_written_is_read_each_time(file: Path, reads: list[Path]) -> None:
    now_ns = time.time_ns()
    for _ in range(2):
        digests(file, now_ns)(file)
    assert len(reads) == 2


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"stamp": 1}', b"\xff"])
def test_a_damaged_entry_is_replaced(file: Path, reads: list[Path], content: bytes) -> None:
    expected = digests(file)(file)
    (entry,) = (file.parent / "digests").iterdir()
    entry.write_bytes(content)
    assert digests(file)(file) == digests(file)(file) == expected
    assert len(reads) == 2


def test_without_a_cache_directory_the_file_is_read(file: Path, reads: list[Path]) -> None:
    (file.parent / "digests").write_bytes(b"a file")
    for _ in range(2):
        assert digests(file)(file) == hashlib.sha256(CONTENT).hexdigest()
    assert len(reads) == 2


def test_a_missing_file_is_an_error(file: Path) -> None:
    with pytest.raises(FileNotFoundError):
        digests(file)(file.with_name("missing"))
