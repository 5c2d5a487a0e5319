"""Checks that images can be embedded, without decoding them."""

import io
import math
import warnings

from serve_app.config import RequestSettings
from serve_app.inputs import Image

#: Pillow's names of the formats that are served. Pillow tries no other decoder.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF")


def image_fault(image: Image, settings: RequestSettings) -> str | None:
    """Returns why an image can't be embedded, as the end of a sentence; None if it can.

    Only the header is read: a small file may hold more pixels than fit into memory.
    """
    if len(image) > settings.max_image_bytes:
        return (
            f"is an image of {len(image)} bytes; at most {settings.max_image_bytes} are taken. "
            "Scale it down."
        )
    try:
        pixels = pixel_count(image)
    except Exception:  # decoders raise errors of many kinds for malformed files
        return f"is not an image in one of the formats {', '.join(FORMATS)}."
    if pixels > settings.max_image_pixels:
        return (
            f"is an image of more than {settings.max_image_pixels} pixels, the most that are "
            "taken. Scale it down."
        )
    return None


def pixel_count(image: Image) -> float:
    """Returns the number of pixels, from the header; infinity where Pillow decodes no such image.

    Raises:
        Exception: the file is not an image in one of the formats.
    """
    # Imported for the first image: services without image models may lack Pillow.
    import PIL.Image

    try:
        with warnings.catch_warnings():
            # The limit of the settings applies, not Pillow's own.
            warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
            with PIL.Image.open(io.BytesIO(image.data), formats=FORMATS) as header:
                return header.width * header.height
    except PIL.Image.DecompressionBombError:
        return math.inf
