"""The tokenizer of a model that embeds texts and images. Only such models need Pillow."""

from collections.abc import Sequence
from io import BytesIO
from typing import Any

from PIL import Image as PillowImage

from serve_app.engines.base import Pixels
from serve_app.engines.tokenizer import TextTokenizer
from serve_app.errors import InvalidRequest
from serve_app.inputs import Image, Input


class ImageTokenizer(TextTokenizer):
    """Encodes texts as `TextTokenizer`, and images with the model's own image processor."""

    def __init__(self, texts: TextTokenizer, transformer: Any) -> None:
        """Wraps the tokenizer of texts, and the library's module that processes images."""
        super().__init__(texts.backend, texts.padding)
        self._transformer = transformer
        vision = transformer.config.vision_config
        self._patch_pixels = int(vision.patch_size) ** 2

    def encode(self, inputs: Sequence[Input]) -> list[Any]:
        """Returns texts as token ids, and images as pixels of the size that the model takes.

        Raises:
            InvalidRequest: see `Tokenizer.encode`.
        """
        pixels = iter([self._pixels(value) for value in inputs if isinstance(value, Image)])
        texts = iter(super().encode([v for v in inputs if not isinstance(v, Image)]))
        return [next(pixels if isinstance(value, Image) else texts) for value in inputs]

    def _pixels(self, image: Image) -> Pixels:
        try:
            picture = decode_image(image)
        except Exception as error:  # decoders raise errors of many kinds for malformed files
            raise InvalidRequest(
                "An image can't be decoded: it is damaged, or in an unknown format.", "images"
            ) from error
        values = self._transformer.preprocess([picture])["pixel_values"][0].numpy()
        area = values.shape[1] * values.shape[2]
        return Pixels(values, area // self._patch_pixels)


def decode_image(image: Image) -> PillowImage.Image:
    """Returns the pixels of an image, in red, green and blue.

    Raises:
        Exception: it can't be decoded.
    """
    return PillowImage.open(BytesIO(image.data)).convert("RGB")
