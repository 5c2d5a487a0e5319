"""The wire format of a sidecar beside a desktop application: `POST /embed` with `texts`."""

from collections.abc import Mapping
from typing import Any

import orjson

from serve_app.errors import EmbedServeError
from serve_app.models import ModelSpec
from serve_app.types import EmbedJob, EmbedResult
from serve_app.web.endpoint import Call, Endpoint, Refusal
from serve_app.web.fields import encode, optional, texts


def parse(body: Mapping[str, Any], spec: ModelSpec) -> Call:
    """Reads `{"texts": […], "normalize": true}`.

    Raises:
        InvalidRequest: it isn't of the dialect's shape.
    """
    normalize = optional(body, "normalize", bool, "true or false") is not False
    return Call(EmbedJob(texts(body["texts"], "texts"), normalize=normalize), _render)


def _render(result: EmbedResult) -> bytes:
    vectors = encode(result.vectors, "float", as_base64=False)
    return orjson.dumps({"vectors": vectors}, option=orjson.OPT_SERIALIZE_NUMPY)


def refuse(error: EmbedServeError) -> Refusal:
    """The error's body."""
    return Refusal(error.status, orjson.dumps({"error": str(error)}))


ENDPOINTS = (Endpoint("/embed", "texts", parse, refuse),)
