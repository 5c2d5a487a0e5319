"""Cache keys, which cover everything that determines an output."""

import hashlib
from array import array

from serve_app.inputs import Input
from serve_app.tasks import Task


def cache_key(space_id: str, prompt: str, value: Input, task: Task = "embed") -> bytes:
    """Returns the SHA-256 (32 bytes) of an input within a space.

    Each part is prefixed with its length, so different parts never hash the same bytes. Token ids
    have no prompt, and so one part less. The space covers model, pipeline, precision and token
    limit. Inputs of other types and other tasks than `embed` have more parts.
    """
    if isinstance(value, str):
        parts = [space_id.encode(), prompt.encode(), value.encode()]
    elif isinstance(value, tuple):
        parts = [space_id.encode(), array("Q", value).tobytes()]
    else:
        parts = [space_id.encode(), prompt.encode(), *value.key_parts()]
    if task != "embed":
        parts += [b"task", task.encode()]
    return hashlib.sha256(b"".join(len(p).to_bytes(8, "little") + p for p in parts)).digest()


def space_prefix(space_id: str) -> bytes:
    """Returns the prefix of a space's keys in the L2 store."""
    return f"{space_id}:".encode()
