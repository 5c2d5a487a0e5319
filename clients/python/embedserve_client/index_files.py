"""The file format of a saved index: `IndexData` ↔ a directory.

| file | content |
|---|---|
| `manifest.json` | version, space, model, dimension, count, SHA-256 of the other files |
| `vectors-<digest>.faiss` | the vectors, in faiss's format |
| `metadata-<digest>.jsonl` | one JSON value per line, in the order of the vectors |

The manifest names the other files by their digests and is replaced last, atomically. A reader
therefore loads the old index or the new one, even if the writer is killed.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from filelock import FileLock

from embedserve_client.errors import FileError
from embedserve_client.space import Space
from embedserve_client.vectors import Float32

_FORMAT = "embedserve-index"
_VERSION = 2
_MANIFEST = "manifest.json"
#: Files that an interrupted writer leaves behind.
_TEMPORARY = {"vectors.new", "metadata.new", "manifest.new"}
_DATA_FILE = re.compile(r"vectors-[0-9a-f]{16}\.faiss|metadata-[0-9a-f]{16}\.jsonl")
#: Writers take turns, and each needs seconds.
_LOCK_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class IndexData:
    """The content of an index."""

    vectors: Any  #: faiss.IndexFlatIP of unit-length vectors
    metadata: list[Any]  #: a JSON value for each vector
    space: Space | None  #: None: unknown
    model: str
    query_options: dict[str, Any] = field(default_factory=dict)  #: shared by texts and queries


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of `manifest.json`."""

    space: str | None
    model: str
    query_options: dict[str, Any]
    dim: int
    count: int
    vectors_sha256: str
    metadata_sha256: str
    format: str = _FORMAT
    version: int = _VERSION

    @property
    def vectors_name(self) -> str:
        """The file with the vectors."""
        return f"vectors-{self.vectors_sha256[:16]}.faiss"

    @property
    def metadata_name(self) -> str:
        """The file with the metadata."""
        return f"metadata-{self.metadata_sha256[:16]}.jsonl"


def import_faiss() -> Any:
    """Returns the module `faiss`, imported on first use.

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


def save(path: Path, data: IndexData) -> None:
    """Saves an index to a directory, which is created if it doesn't exist.

    Raises:
        FileError: the directory holds something other than an index, or can't be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with FileLock(path / "save.lock", timeout=_LOCK_TIMEOUT_S):
            if (path / _MANIFEST).exists():
                read_manifest(path)
            _save(path, data)
    except (OSError, RuntimeError) as error:  # faiss raises RuntimeError for I/O errors
        raise FileError(f"The index can't be written to {path}: {error}") from error


def _save(path: Path, data: IndexData) -> None:
    vectors, metadata = path / "vectors.new", path / "metadata.new"
    import_faiss().write_index(data.vectors, str(vectors))
    with metadata.open("wb") as lines:
        for value in data.metadata:
            text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
            lines.write(text.encode("utf-8", "surrogatepass") + b"\n")
    _publish(path, data.vectors, data.space, data.model, data.query_options, _sync(metadata))


def _publish(
    path: Path,
    vectors: Any,
    space: Space | None,
    model: str,
    query_options: dict[str, Any],
    metadata_sha256: str,
) -> None:
    """Replaces the index by the temporary files. Metadata that stay have no temporary file."""
    manifest = Manifest(
        None if space is None else str(space),
        model,
        query_options,
        vectors.d,
        vectors.ntotal,
        _sync(path / "vectors.new"),
        metadata_sha256,
    )
    os.replace(path / "vectors.new", path / manifest.vectors_name)
    if (path / "metadata.new").exists():
        os.replace(path / "metadata.new", path / manifest.metadata_name)
    temporary = path / "manifest.new"
    temporary.write_text(json.dumps(asdict(manifest), indent=2) + "\n", "utf-8")
    _sync(temporary)
    os.replace(temporary, path / _MANIFEST)
    current = {manifest.vectors_name, manifest.metadata_name}
    for file in path.iterdir():
        is_old_data = _DATA_FILE.fullmatch(file.name) and file.name not in current
        if is_old_data or file.name in _TEMPORARY:
            with suppress(OSError):  # on Windows, while it is read; the next save removes it
                file.unlink()


def replace_vectors(
    path: Path,
    manifest: Manifest,
    data: IndexData,
    target: Path | None = None,
) -> None:
    """Replaces the vectors of an index and keeps its metadata, or writes them to another directory.

    Like that of `save`, the replacement is atomic.

    Args:
        path: the index.
        manifest: what `read_manifest` has returned, when the vectors were begun.
        data: the new vectors, one for each of the old ones; its metadata aren't used.
        target: a directory without an index; None: the index itself.

    Raises:
        FileError: the index has changed since then, the target holds something, or a file can't be
            written.
    """
    target = target or path
    try:
        target.mkdir(parents=True, exist_ok=True)
        with FileLock(target / "save.lock", timeout=_LOCK_TIMEOUT_S):
            if read_manifest(path) != manifest:
                raise FileError(f"{path} has changed meanwhile. Start over with --restart.")
            if target != path:
                if (target / _MANIFEST).exists():
                    raise FileError(f"{target} exists. Use another directory.")
                shutil.copyfile(path / manifest.metadata_name, target / "metadata.new")
                _sync(target / "metadata.new")
            import_faiss().write_index(data.vectors, str(target / "vectors.new"))
            _publish(
                target,
                data.vectors,
                data.space,
                data.model,
                data.query_options,
                manifest.metadata_sha256,
            )
    except (OSError, RuntimeError) as error:  # faiss raises RuntimeError for I/O errors
        raise FileError(f"The index can't be written to {target}: {error}") from error


def open_metadata(path: Path, manifest: Manifest) -> IO[bytes]:
    """Opens the metadata of an index, one JSON value in each line; a replaced index stays readable.

    Raises:
        FileError: the file is missing or damaged.
    """
    file = path / manifest.metadata_name
    _check_digest(file, manifest.metadata_sha256)
    return file.open("rb")


def read_vectors(path: Path, manifest: Manifest, positions: Sequence[int]) -> Float32:
    """Returns some vectors of an index, float32 of shape (n, dim).

    Raises:
        FileError: the file is missing or damaged.
    """
    file = path / manifest.vectors_name
    _check_digest(file, manifest.vectors_sha256)
    faiss = import_faiss()
    try:
        index = faiss.read_index(str(file), faiss.IO_FLAG_MMAP_IFC)
        vectors: Float32 = index.reconstruct_batch(np.asarray(positions, dtype=np.int64))
    except RuntimeError as error:
        raise FileError(f"The index in {path} can't be read: {error}") from error
    return vectors


def _sync(file: Path) -> str:
    """Flushes a file to disk and returns its SHA-256 in hex."""
    with file.open("rb+") as opened:
        os.fsync(opened.fileno())
        return hashlib.file_digest(opened, "sha256").hexdigest()


def load(path: Path) -> IndexData:
    """Loads an index from a directory.

    Raises:
        FileError: there is no index, or it is damaged.
    """
    manifest = read_manifest(path)
    while True:
        try:
            return _load(path, manifest)
        except FileError:
            # A concurrent writer may have removed the files after the manifest was read.
            previous, manifest = manifest, read_manifest(path)
            if manifest == previous:
                raise


def _load(path: Path, manifest: Manifest) -> IndexData:
    vectors, metadata = path / manifest.vectors_name, path / manifest.metadata_name
    _check_digest(vectors, manifest.vectors_sha256)
    _check_digest(metadata, manifest.metadata_sha256)
    try:
        faiss = import_faiss()
        index = faiss.read_index(str(vectors))
        with metadata.open("rb") as lines:
            values = [json.loads(line) for line in lines]
    except (OSError, RuntimeError, ValueError) as error:
        raise FileError(f"The index in {path} can't be read: {error}") from error
    is_flat = isinstance(index, faiss.IndexFlat) and index.metric_type == faiss.METRIC_INNER_PRODUCT
    if not is_flat or (index.d, index.ntotal) != (manifest.dim, manifest.count):
        raise FileError(
            f"{vectors} isn't an exact index of {manifest.count} vectors of {manifest.dim} "
            f"dimensions, as {_MANIFEST} says. Rebuild the index."
        )
    if len(values) != manifest.count:
        raise FileError(
            f"{metadata} has {len(values)} lines for {manifest.count} vectors. Rebuild the index."
        )
    space = None if manifest.space is None else Space.parse(manifest.space)
    return IndexData(index, values, space, manifest.model, manifest.query_options)


def _check_digest(file: Path, expected: str) -> None:
    try:
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise FileError(
            f"The index lacks {file}: {error.strerror}. Copy the complete directory, or rebuild "
            "the index."
        ) from error
    if digest != expected:
        raise FileError(
            f"{file} was truncated or changed: its SHA-256 is {digest}, not {expected}. Rebuild "
            "the index."
        )


def read_manifest(path: Path) -> Manifest:
    """Reads what an index consists of, without its vectors and metadata.

    Raises:
        FileError: there is no index, or it has another version.
    """
    file = path / _MANIFEST
    try:
        body = json.loads(file.read_bytes())
    except OSError as error:
        raise FileError(f"There is no index in {path}: {file}: {error.strerror}.") from error
    except ValueError as error:
        raise FileError(f"{file} isn't JSON: {error}. Does it belong to an index?") from error
    if not isinstance(body, dict) or body.get("format") != _FORMAT:
        raise FileError(f"{path} holds something other than an index. Use another directory.")
    if body.get("version") != _VERSION:
        raise FileError(
            f"{path} holds an index of version {body.get('version')}; this client reads version "
            f"{_VERSION}. Install the client that wrote it, or rebuild the index."
        )
    try:
        manifest = Manifest(**body)
        _check_manifest(manifest)
    except (TypeError, ValueError) as error:
        raise FileError(f"{file} doesn't describe an index: {error}.") from error
    return manifest


def _check_manifest(manifest: Manifest) -> None:
    """Checks the types of a manifest, whose digests become parts of file names.

    Raises:
        TypeError: a field has another type.
        ValueError: a digest or the space is malformed.
    """
    for digest in (manifest.vectors_sha256, manifest.metadata_sha256):
        if not re.fullmatch("[0-9a-f]{64}", digest):
            raise ValueError(f"{digest!r} isn't a SHA-256")
    if manifest.space is not None:
        Space.parse(manifest.space)
    for name, cls in (("dim", int), ("count", int), ("model", str), ("query_options", dict)):
        if not isinstance(getattr(manifest, name), cls):
            raise TypeError(f"`{name}` is {getattr(manifest, name)!r}")
