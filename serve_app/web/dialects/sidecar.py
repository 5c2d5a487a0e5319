"""The wire format of a sidecar beside a desktop application: `POST /embed` with `texts`."""

import orjson

from serve_app.errors import EmbedServeError
from serve_app.models import ModelSpec
from serve_app.types import EmbedJob, EmbedResult
from serve_app.web.dialects.extensions import CHUNK, USE_CACHE
from serve_app.web.endpoint import Endpoint, ErrorResponse, ParsedRequest, refusal
from serve_app.web.schema.fields import Body, BoolField, TextsField
from serve_app.web.schema.json_schema import STRING, VECTOR, array, object_
from serve_app.web.schema.vector_encoding import as_floats

_TEXTS = TextsField("texts", "One text, or a list.", True)
_NORMALIZE = BoolField("normalize", "Vectors of unit length; true unless said otherwise.")


def parse(body: Body, spec: ModelSpec) -> ParsedRequest:
    """Reads `{"texts": […], "normalize": true}`.

    Raises:
        InvalidRequest: it isn't of the dialect's shape.
    """
    job = EmbedJob(
        _TEXTS(body),
        normalize=_NORMALIZE(body) is not False,
        truncation="chunk" if CHUNK(body) else "end",
        use_cache=USE_CACHE(body) is not False,
    )
    return ParsedRequest(job, _render)


def _render(result: EmbedResult) -> bytes:
    return orjson.dumps({"vectors": as_floats(result)}, option=orjson.OPT_SERIALIZE_NUMPY)


@refusal(object_({"error": STRING}))
def render_error(error: EmbedServeError) -> ErrorResponse:
    """The error's body."""
    return ErrorResponse(error.status, orjson.dumps({"error": str(error)}))


ENDPOINTS = (
    Endpoint(
        "/embed",
        "sidecar",
        "Vectors of texts.",
        "texts",
        (_TEXTS, _NORMALIZE, CHUNK, USE_CACHE),
        parse,
        object_({"vectors": array(VECTOR)}),
        render_error,
    ),
)
