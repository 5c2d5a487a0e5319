"""Cache keys, which cover everything that determines a vector's values."""

import hashlib
from array import array

from serve_app.inputs import Input


def cache_key(space_id: str, prompt: str, text: Input) -> bytes:
    """Returns the SHA-256 (32 bytes) of a text or of token ids within a space.

    Each part is prefixed with its length, so different parts never hash the same bytes. Token ids
    have no prompt, and so one part less. The space covers model, pipeline, precision and token
    limit.
    """
    if isinstance(text, str):
        parts = [space_id.encode(), prompt.encode(), text.encode()]
    else:
        parts = [space_id.encode(), array("Q", text).tobytes()]
    return hashlib.sha256(b"".join(len(p).to_bytes(8, "little") + p for p in parts)).digest()
