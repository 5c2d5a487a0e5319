"""Cache keys: one for everything that decides a vector's values."""

import hashlib
from array import array

from serve_app.types import Input


def cache_key(space_id: str, prompt: str, text: Input) -> bytes:
    """SHA-256, 32 bytes, of a text or of token ids in its space.

    Every part is written with its length before it, so no two different tuples of parts
    share one byte string; token ids have no prompt and so one part less. The space already holds
    model, pipeline, precision and token limit.
    """
    if isinstance(text, str):
        parts = [space_id.encode(), prompt.encode(), text.encode()]
    else:
        parts = [space_id.encode(), array("Q", text).tobytes()]
    return hashlib.sha256(b"".join(len(p).to_bytes(8, "little") + p for p in parts)).digest()
