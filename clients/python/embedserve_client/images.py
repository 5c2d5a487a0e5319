"""Images: files or bytes → the inputs of a request in Jina's format."""

import base64
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embedserve_client.errors import FileError

#: The content of an image file, or its path. A string that begins with `data:`, `http:` or `https:`
#: is sent as it is; the service takes data URIs, and URLs of hosts that `allow_image_urls` names.
ImageInput = bytes | str | os.PathLike[str]

#: The first bytes of each format → its media type.
_MEDIA_TYPES = {
    b"\x89PNG\r\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
}
_URL_SCHEMES = ("data:", "http:", "https:")
#: A service accepts bodies of 8 MiB by default.
_MAX_REQUEST_CHARS = 6 << 20


def image_inputs(images: Sequence[ImageInput]) -> list[dict[str, str]]:
    """Returns the images as inputs of a request, `{"image": <data URI>}`.

    Raises:
        ValueError: the content isn't PNG, JPEG, GIF or WebP.
        FileError: a file can't be read.
    """
    return [{"image": _url(image, i)} for i, image in enumerate(images)]


def _url(image: ImageInput, index: int) -> str:
    if isinstance(image, str) and image.startswith(_URL_SCHEMES):
        return image
    content = image if isinstance(image, bytes) else _read(Path(image))
    return f"data:{_media_type(content, index)};base64,{base64.b64encode(content).decode()}"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileError(f"The image {path} can't be read: {error.strerror}.") from error


def _media_type(content: bytes, index: int) -> str:
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    for prefix, media_type in _MEDIA_TYPES.items():
        if content.startswith(prefix):
            return media_type
    raise ValueError(f"Image {index} isn't PNG, JPEG, GIF or WebP. Convert it to one of these.")


def split_images(inputs: Sequence[Any], max_images: int) -> list[list[Any]]:
    """Splits inputs into requests of up to `max_images` that a service accepts by their size."""
    batches = list[list[Any]]()
    size = 0
    for item in inputs:
        chars = len(item["image"])
        size += chars
        if not batches or len(batches[-1]) == max_images or size > _MAX_REQUEST_CHARS:
            batches.append([])
            size = chars
        batches[-1].append(item)
    return batches
