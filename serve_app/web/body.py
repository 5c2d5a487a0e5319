"""Request bodies: media type, charset and content coding → **bytes** → JSON object."""

import codecs
import json
from typing import Any

import orjson

from serve_app.errors import InvalidJSON, InvalidRequest, UnsupportedMediaType, short_repr
from serve_app.web.accept import JSON

_CHARSETS = frozenset(("utf-8", "utf8", "us-ascii", "ascii"))


def require_json(content_type: str) -> None:
    """Checks the header `Content-Type` of a request.

    Raises:
        UnsupportedMediaType: the media type isn't JSON, or the charset isn't UTF-8 or US-ASCII.
    """
    if content_type == JSON:
        return
    media_type, *parameters = (part.strip() for part in content_type.lower().split(";"))
    if media_type != JSON:
        raise UnsupportedMediaType(
            f"The body's type is {media_type or 'not given'}; send the header "
            "`Content-Type: application/json`."
        )
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        charset = value.strip().strip('"')
        if name.strip() == "charset" and charset and charset not in _CHARSETS:
            raise UnsupportedMediaType(
                f"The charset {short_repr(charset)} is not supported. Send JSON in UTF-8."
            )


def parse_object(body: bytes) -> dict[str, Any]:
    """Parses a body as a JSON object. A byte order mark of UTF-8 is ignored.

    Raises:
        InvalidJSON: the body isn't JSON in UTF-8.
        InvalidRequest: the JSON value isn't an object.
    """
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        fields = _loads_after_mark(body, error)
    if not isinstance(fields, dict):
        raise InvalidRequest("The body must be a JSON object.")
    return fields


def _loads_after_mark(body: bytes, error: orjson.JSONDecodeError) -> Any:
    """Parses a body after its byte order mark; raises InvalidJSON if it has none."""
    if body.startswith(codecs.BOM_UTF8):
        try:
            return orjson.loads(body.removeprefix(codecs.BOM_UTF8))
        except orjson.JSONDecodeError as after_mark:
            error = after_mark
    raise InvalidJSON(_fault(body, error)) from None


def _fault(body: bytes, error: orjson.JSONDecodeError) -> str:
    encoding = json.detect_encoding(body)
    if encoding.startswith(("utf-16", "utf-32")):
        return f"The body looks like {encoding.upper()}. Send JSON in valid UTF-8."
    try:
        body.decode()
    except UnicodeDecodeError as fault:
        return (
            f"The body is not UTF-8, byte {fault.start} ({body[fault.start]:#04x}). "
            "Send JSON in valid UTF-8."
        )
    hint = (
        " A text holds half a surrogate pair; send well-formed Unicode."
        if "surrogate" in str(error)
        else ""
    )
    return f"The body isn't valid JSON: {error}.{hint}"
