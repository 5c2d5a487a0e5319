"""Request bodies: media type, charset and content coding → **bytes** → JSON object."""

import codecs
import json
import re
from contextlib import suppress
from typing import Any

import orjson

from serve_app.errors import InvalidJSON, InvalidRequest, UnsupportedMediaType, short_repr
from serve_app.web.accept import JSON
from serve_app.web.request_headers import unfold

_SURROGATE = re.compile("[\ud800-\udfff]")
_CHARSETS = frozenset(("utf-8", "utf8", "us-ascii", "ascii"))

#: Media types of a client that doesn't set one: none, and curl's default.
DEFAULT_TYPES = frozenset(("", "application/x-www-form-urlencoded"))


def require_json(content_type: str) -> None:
    """Checks the header `Content-Type` of a request.

    Raises:
        UnsupportedMediaType: the media type isn't JSON, or the charset isn't UTF-8 or US-ASCII.
    """
    if content_type == JSON:
        return
    media_type, *parameters = (part.strip() for part in unfold(content_type.lower()).split(";"))
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


def parse_object(body: bytes, *, replace_surrogates: bool = False) -> dict[str, Any]:
    """Parses a body as a JSON object. A byte order mark of UTF-8 is ignored.

    Args:
        body: JSON in UTF-8.
        replace_surrogates: accept escaped surrogates without a pair; each becomes a NUL.

    Raises:
        InvalidJSON: the body isn't JSON in UTF-8.
        InvalidRequest: the JSON value isn't an object.
    """
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        fields = _loads_invalid(body, error, replace_surrogates)
    if not isinstance(fields, dict):
        raise InvalidRequest("The body must be a JSON object.")
    return fields


def _loads_invalid(body: bytes, error: orjson.JSONDecodeError, replace_surrogates: bool) -> Any:
    """Parses a body that orjson rejects: after its byte order mark, or with its surrogates."""
    if body.startswith(codecs.BOM_UTF8):
        body = body.removeprefix(codecs.BOM_UTF8)
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError as after_mark:
            error = after_mark
    fault = _encoding_fault(body)
    if fault is None and "surrogate" in str(error):
        with suppress(ValueError, RecursionError):  # the error of orjson says why
            fields = json.loads(body)
            fault = _find_surrogate(fields)
            if fault is not None and replace_surrogates:
                return _without_surrogates(fields)
    raise InvalidJSON(fault or f"The body isn't valid JSON: {error}.") from None


def _encoding_fault(body: bytes) -> str | None:
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
    return None


def _find_surrogate(value: Any, path: str = "") -> str | None:
    """Returns a message that names the first surrogate in a JSON value; None: there is none."""
    if isinstance(value, str):
        match = _SURROGATE.search(value)
        return match and (
            f"`{path}` holds half a surrogate pair at character {match.start()}. "
            "Send well-formed Unicode."
        )
    if isinstance(value, dict):
        items = ((f"{path}.{key}" if path else key, item) for key, item in value.items())
    elif isinstance(value, list):
        items = ((f"{path}[{i}]", item) for i, item in enumerate(value))
    else:
        return None
    return next(filter(None, (_find_surrogate(item, name) for name, item in items)), None)


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return _SURROGATE.sub("\0", value)
    if isinstance(value, dict):
        return {_SURROGATE.sub("\0", key): _without_surrogates(v) for key, v in value.items()}
    return [_without_surrogates(v) for v in value] if isinstance(value, list) else value
