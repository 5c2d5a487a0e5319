"""Images in JSON: data URIs or base64 → `Image`."""

import base64
import binascii

from serve_app.errors import InvalidRequest
from serve_app.inputs import Image
from serve_app.models import ModelSpec
from serve_app.web.schema.json_schema import Schema

_MEDIA_TYPES = ("image/png", "image/jpeg", "image/webp", "image/gif")
_HINT = "Send it as a data URI, `data:image/png;base64,…`."

#: JSON Schema of an image.
IMAGE: Schema = {
    "type": "string",
    "pattern": "^(data:image/(png|jpeg|webp|gif);base64,)?[A-Za-z0-9+/]+={0,2}$",
    "description": "An image as a data URI. URLs are not fetched.",
}
DATA_URI: Schema = IMAGE | {"pattern": IMAGE["pattern"].replace("?", "", 1)}


def takes_images(spec: ModelSpec) -> bool:
    """Returns whether a model embeds images."""
    return "embed_images" in spec.tasks


def parse_image(value: object, name: str, *, allow_base64: bool = False) -> Image:
    """Returns the image of a data URI. The service checks its format and its size.

    Args:
        value: the JSON value.
        name: the field, for errors.
        allow_base64: whether the value may be base64 without the header of a data URI.

    Raises:
        InvalidRequest: the value is not a data URI of a supported media type in base64.
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
        raise InvalidRequest(
            f"`{name}` holds the URL of an image. URLs are not fetched. {_HINT}", name
        )
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
