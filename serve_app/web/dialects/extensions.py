"""Fields of our own, which every dialect takes beside its own."""

from serve_app.web.schema.fields import Flag

CHUNK = Flag(
    "chunk",
    "true: a text that is too long is embedded in parts; the mean of their vectors, weighted by "
    "their tokens, stands for it at unit length.",
)
USE_CACHE = Flag("use_cache", "false: everything is computed anew, and nothing is kept.")
