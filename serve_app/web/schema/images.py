"""Images in JSON: data URIs or base64 → `Image`, URLs → `ImageUrl`."""

import base64
import binascii

from serve_app.errors import InvalidRequest
from serve_app.inputs import Image, ImageUrl
from serve_app.models import ModelSpec
from serve_app.web.schema.fields import SchemaContext
from serve_app.web.schema.json_schema import Schema, any_of

_MEDIA_TYPES = ("image/png", "image/jpeg", "image/webp", "image/gif")
_HINT = "Send it as a data URI, `data:image/png;base64,…`."

_HEADER = "(data:image/(png|jpeg|webp|gif);base64,)"


def image_schema(context: SchemaContext, *, allow_base64: bool = False) -> Schema:
    """Returns the JSON Schema of an image; see `parse_image`."""
    hosts = context.settings.allow_image_urls
    schema: Schema = {
        "type": "string",
        "pattern": f"^{_HEADER}{'?' if allow_base64 else ''}[A-Za-z0-9+/]+={{0,2}}$",
        "description": "An image as a data URI." + ("" if hosts else " URLs are not fetched."),
    }
    if not hosts:
        return schema
    url: Schema = {
        "type": "string",
        "pattern": "^https?://",
        "description": f"The URL of an image at one of the hosts {', '.join(hosts)}.",
    }
    return any_of(schema, url)


def takes_images(spec: ModelSpec) -> bool:
    """Returns whether a model embeds images."""
    return "embed_images" in spec.tasks


def parse_image(value: object, name: str, *, allow_base64: bool = False) -> Image | ImageUrl:
    """Returns the image of a data URI, or a URL. The service fetches it.

    The service checks the format and the size.

    Args:
        value: the JSON value.
        name: the field, for errors.
        allow_base64: whether the value may be base64 without the header of a data URI.

    Raises:
        InvalidRequest: the value is neither a data URI of a supported media type in base64, nor a
            URL.
    """
    if not isinstance(value, str):
        raise InvalidRequest(f"`{name}` must hold images as strings. {_HINT}", name)
    if value.startswith("data:"):
        header, separator, encoded = value[len("data:") :].partition(",")
        media_type, *parameters = header.split(";")
        if not separator or media_type.lower() not in _MEDIA_TYPES or parameters[-1:] != ["base64"]:
            raise InvalidRequest(
                f"An image in `{name}` must be one of {', '.join(_MEDIA_TYPES)}, in base64. "
                f"{_HINT}",
                name,
            )
    elif value.partition(":")[0].lower() in ("http", "https"):
        return ImageUrl(value, name)
    elif allow_base64:
        encoded = value
    else:
        raise InvalidRequest(f"An image in `{name}` is not a data URI. {_HINT}", name)
    try:
        data = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(f"An image in `{name}` is not valid base64.", name) from None
    if not data:
        raise InvalidRequest(f"An image in `{name}` is empty.", name)
    return Image(data)
