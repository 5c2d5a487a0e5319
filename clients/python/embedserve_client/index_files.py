"""An index as files: what `VectorIndex.save` leaves in a folder, and whether it is whole.

| file | what it holds |
|---|---|
| `about.json` | version, space, model, dim, count, SHA-256 of the other two |
| `vectors-<digest>.faiss` | the vectors, as faiss writes them |
| `metadata-<digest>.jsonl` | one JSON value a line, in the order of the vectors |

`about.json` is renamed into its place last, and names the others by their digests: who reads finds
the old index or the new one, whenever the writer ends, and never half of each.
"""

import hashlib
import json
import os
import re
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from embedserve_client.errors import FileError
from embedserve_client.space import Space

_FORMAT = "embedserve-index"
_VERSION = 1
_ABOUT = "about.json"
#: What a writer leaves when it is ended in the middle, beside files that nobody names any more.
_NEW = {"vectors.new", "metadata.new", "about.new"}
_OURS = re.compile(r"vectors-[0-9a-f]{16}\.faiss|metadata-[0-9a-f]{16}\.jsonl")
#: Writers of one folder take turns; each is done in seconds.
_TURN_S = 300.0


@dataclass(frozen=True, slots=True)
class Held:
    """An index, apart from who searches it."""

    vectors: Any  #: faiss.IndexFlatIP of unit-length vectors
    metadata: list[Any]  #: JSON values, one for each vector
    space: Space | None  #: None: whoever made the vectors doesn't say
    model: str
    asked: dict[str, Any] = field(default_factory=dict)  #: options that queries share with texts


@dataclass(frozen=True, slots=True)
class _About:
    """What `about.json` says."""

    space: str | None
    model: str
    asked: dict[str, Any]
    dim: int
    count: int
    vectors_sha256: str
    metadata_sha256: str
    format: str = _FORMAT
    version: int = _VERSION

    @property
    def vectors_name(self) -> str:
        return f"vectors-{self.vectors_sha256[:16]}.faiss"

    @property
    def metadata_name(self) -> str:
        return f"metadata-{self.metadata_sha256[:16]}.jsonl"


def faiss_library() -> Any:
    """The module `faiss`, which is imported when it is first needed.

    Raises:
        ImportError: it isn't installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            "An index needs faiss: pip install 'embedserve-client[search]'"
        ) from error
    return faiss


def save(folder: Path, held: Held) -> None:
    """Puts an index in place of the one in the folder, which is made where there is none.

    Raises:
        FileError: the folder holds something else, or can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "save.lock", timeout=_TURN_S):
            if (folder / _ABOUT).exists():
                _read_about(folder)
            _save(folder, held)
    except (OSError, RuntimeError) as error:  # faiss raises the latter, whatever failed
        raise FileError(f"The index can't be written to {folder}: {error}") from error


def _save(folder: Path, held: Held) -> None:
    vectors, metadata = folder / "vectors.new", folder / "metadata.new"
    faiss_library().write_index(held.vectors, str(vectors))
    with metadata.open("wb") as lines:
        for value in held.metadata:
            text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
            lines.write(text.encode("utf-8", "surrogatepass") + b"\n")
    about = _About(
        None if held.space is None else str(held.space),
        held.model,
        held.asked,
        held.vectors.d,
        held.vectors.ntotal,
        _settled(vectors),
        _settled(metadata),
    )
    os.replace(vectors, folder / about.vectors_name)
    os.replace(metadata, folder / about.metadata_name)
    new = folder / "about.new"
    new.write_text(json.dumps(asdict(about), indent=2) + "\n", "utf-8")
    _settled(new)
    os.replace(new, folder / _ABOUT)
    named = {about.vectors_name, about.metadata_name}
    for file in folder.iterdir():
        left = file.name in _NEW or (_OURS.fullmatch(file.name) and file.name not in named)
        if left:
            with suppress(OSError):  # somebody may still read it; the next save removes it
                file.unlink()


def _settled(file: Path) -> str:
    """SHA-256 of a file, in hex, once it will outlast the machine's end."""
    with file.open("rb+") as opened:
        os.fsync(opened.fileno())
        return hashlib.file_digest(opened, "sha256").hexdigest()


def load(folder: Path) -> Held:
    """The index in a folder.

    Raises:
        FileError: there is none, or it isn't whole; the message says what is wrong.
    """
    about = _read_about(folder)
    while True:
        try:
            return _load(folder, about)
        except FileError:
            # A writer may have removed the files since they were named.
            before, about = about, _read_about(folder)
            if about == before:
                raise


def _load(folder: Path, about: _About) -> Held:
    vectors, metadata = folder / about.vectors_name, folder / about.metadata_name
    for file, digest in ((vectors, about.vectors_sha256), (metadata, about.metadata_sha256)):
        _check_digest(file, digest)
    try:
        faiss = faiss_library()
        index = faiss.read_index(str(vectors))
        with metadata.open("rb") as lines:
            values = [json.loads(line) for line in lines]
    except (OSError, RuntimeError, ValueError) as error:
        raise FileError(f"The index in {folder} can't be read: {error}") from error
    is_flat = isinstance(index, faiss.IndexFlat) and index.metric_type == faiss.METRIC_INNER_PRODUCT
    if not is_flat or (index.d, index.ntotal) != (about.dim, about.count):
        raise FileError(
            f"{vectors} isn't the exact index of {about.count} vectors of {about.dim} dimensions "
            f"that {_ABOUT} speaks of. Build the index anew."
        )
    if len(values) != about.count:
        raise FileError(
            f"{metadata} has {len(values)} lines for {about.count} vectors. Build the index anew."
        )
    space = None if about.space is None else Space.parse(about.space)
    return Held(index, values, space, about.model, about.asked)


def _check_digest(file: Path, expected: str) -> None:
    try:
        with file.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise FileError(
            f"The index misses {file}: {error.strerror}. Copy the folder whole, or build it anew."
        ) from error
    if found != expected:
        raise FileError(
            f"{file} isn't what was saved: its SHA-256 is {found}, not {expected}. It was cut "
            "short or changed. Build the index anew."
        )


def _read_about(folder: Path) -> _About:
    file = folder / _ABOUT
    try:
        body = json.loads(file.read_bytes())
    except OSError as error:
        raise FileError(f"There is no index in {folder}: {file}: {error.strerror}.") from error
    except ValueError as error:
        raise FileError(f"{file} isn't JSON: {error}. Is it an index's?") from error
    if not isinstance(body, dict) or body.get("format") != _FORMAT:
        raise FileError(f"{folder} holds something else than an index. Name another folder.")
    if body.get("version") != _VERSION:
        raise FileError(
            f"{folder} holds an index of version {body.get('version')}; this client reads version "
            f"{_VERSION}. Install the client that wrote it, or build it anew."
        )
    try:
        about = _About(**body)
        _check_about(about)
    except (TypeError, ValueError) as error:
        raise FileError(f"{file} doesn't describe an index: {error}.") from error
    return about


def _check_about(about: _About) -> None:
    """Lets what has the right form pass, since names of files are made of it.

    Raises:
        TypeError, ValueError: it hasn't.
    """
    for digest in (about.vectors_sha256, about.metadata_sha256):
        if not re.fullmatch("[0-9a-f]{64}", digest):
            raise ValueError(f"{digest!r} isn't a SHA-256")
    if about.space is not None:
        Space.parse(about.space)
    for name, kind in (("dim", int), ("count", int), ("model", str), ("asked", dict)):
        if not isinstance(getattr(about, name), kind):
            raise TypeError(f"`{name}` is {getattr(about, name)!r}")
