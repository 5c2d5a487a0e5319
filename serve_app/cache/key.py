"""Cache keys: one for everything that decides a vector's values."""

import hashlib


def cache_key(space_id: str, prompt: str, text: str, truncation_side: str = "right") -> bytes:
    """SHA-256, 32 bytes, of a text in its space.

    Every part is written with its length before it, so no two different tuples of parts
    share one byte string. The space already holds model, pipeline, precision and token limit.
    """
    parts = [part.encode() for part in (space_id, truncation_side, prompt, text)]
    return hashlib.sha256(b"".join(len(p).to_bytes(8, "little") + p for p in parts)).digest()
