"""EmbedServe's own request fields, which the dialects take in addition to their formats' fields."""

from serve_app.web.schema.fields import BoolField, ModelField

CHUNK = BoolField(
    "chunk",
    "If true, a text over the token limit is split into chunks. Its vector is the mean of the "
    "chunks' vectors, weighted by their tokens and normalized to unit length.",
)
USE_CACHE = BoolField(
    "use_cache", "If false, every vector is computed; the cache is neither read nor written."
)
MODEL = ModelField(
    "model", "Name or alias of the model; by default the first one that supports the request."
)
