"""Infinity's wire format: `POST /embeddings` and `GET /models`, nearly OpenAI's."""

import time
from collections.abc import Mapping
from functools import partial
from typing import Any
from uuid import uuid4

import orjson

from serve_app.errors import EmbedServeError
from serve_app.models import ModelSpec
from serve_app.types import EmbedJob, EmbedResult
from serve_app.web.dialects import openai
from serve_app.web.endpoint import Call, Endpoint, Refusal
from serve_app.web.fields import one_of, optional, texts

#: What a client sends that names no model.
_ANY_MODEL = "default/not-specified"


def parse(body: Mapping[str, Any], spec: ModelSpec) -> Call:
    """Reads the body of `POST /embeddings`; texts lose the white space around them.

    Raises:
        InvalidRequest: it isn't of the dialect's shape, or asks for images or sound.
    """
    encoding = one_of(body.get("encoding_format"), "encoding_format", ("float", "base64"))
    one_of(body.get("modality"), "modality", ("text",))
    model = optional(body, "model", str, "a string")
    job = EmbedJob(
        tuple(t.strip() if isinstance(t, str) else t for t in texts(body.get("input"), "input")),
        model=None if model == _ANY_MODEL else model,
        dimensions=optional(body, "dimensions", int, "an integer") or None,
    )
    return Call(job, partial(_render, as_base64=encoding == "base64"))


def _render(result: EmbedResult, *, as_base64: bool) -> bytes:
    reply = openai.reply(result, "float", as_base64)
    reply |= {"id": f"infinity-{uuid4()}", "created": int(time.time())}
    return orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)


def render_models(spec: ModelSpec) -> bytes:
    """The body of `GET /models`."""
    models = [
        {
            "id": name,
            "object": "model",
            "owned_by": "infinity",
            "created": spec.created_s,
            "backend": "embedserve",
            "capabilities": ["embed"],
        }
        for name in (spec.name, *spec.aliases)
    ]
    return orjson.dumps({"object": "list", "data": models})


def refuse(error: EmbedServeError) -> Refusal:
    """The error's envelope, whose code is the status."""
    envelope = {"message": str(error), "type": None, "param": None, "code": int(error.status)}
    return Refusal(error.status, orjson.dumps({"error": envelope}))


ENDPOINTS = (Endpoint("/embeddings", "input", parse, refuse),)
