"""Cache keys, which cover everything that determines an output."""

import hashlib
from array import array
from collections.abc import Sequence
from functools import lru_cache

from serve_app.inputs import Input
from serve_app.tasks import Task


def cache_key(space_id: str, prompt: str, value: Input, task: Task = "embed") -> bytes:
    """Returns the SHA-256 (32 bytes) of an input within a space.

    Each part is prefixed with its length, so different parts never hash the same bytes. Token ids
    have no prompt, and so one part less. The space covers model, pipeline, precision and token
    limit. Inputs of other types and other tasks than `embed` have more parts.
    """
    if isinstance(value, str):
        prefix, parts = _prefix(space_id, prompt), [value.encode()]
    elif isinstance(value, tuple):
        prefix, parts = _prefix(space_id), [array("Q", value).tobytes()]
    else:
        prefix, parts = _prefix(space_id, prompt), value.key_parts()
    if task != "embed":
        parts += [b"task", task.encode()]
    return hashlib.sha256(prefix + _joined(parts)).digest()


@lru_cache(maxsize=1024)
def _prefix(*parts: str) -> bytes:
    return _joined([part.encode() for part in parts])


def _joined(parts: Sequence[bytes]) -> bytes:
    return b"".join([len(part).to_bytes(8, "little") + part for part in parts])


def space_prefix(space_id: str) -> bytes:
    """Returns the prefix of a space's keys in the L2 store."""
    return f"{space_id}:".encode()
