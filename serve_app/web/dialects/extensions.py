"""Fields of our own, which every dialect takes beside its own."""

from serve_app.web.schema.fields import BoolField

CHUNK = BoolField(
    "chunk",
    "true: a text that is too long is embedded in parts; the mean of their vectors, weighted by "
    "their tokens, stands for it at unit length.",
)
USE_CACHE = BoolField("use_cache", "false: everything is computed anew, and nothing is kept.")
