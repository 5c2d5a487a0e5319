"""Whether texts and token ids can be embedded."""

from collections.abc import Sequence

from serve_app.config import IngressSettings
from serve_app.errors import EmptyInput, InvalidRequest


def validate_inputs(inputs: Sequence[object], settings: IngressSettings) -> None:
    """Tells whether every text can be embedded.

    Raises:
        InvalidRequest: there are none or too many, or one is neither a string nor token ids, is
            empty or too long, or holds what no text holds (NUL, half a surrogate pair). The
            message names its place.
    """
    if not inputs:
        raise EmptyInput("The list of texts is empty. Send at least one text.", "texts")
    if len(inputs) > settings.max_texts_per_request:
        raise InvalidRequest(
            f"{len(inputs)} texts in one request; at most {settings.max_texts_per_request} are "
            "taken. Split the list.",
            "texts",
        )
    for i, given in enumerate(inputs):
        if given in ("", ()):
            raise EmptyInput(
                f"Text {i} is empty. Leave it out, or send at least one character.", "texts"
            )
        fault = _fault(given, settings.max_text_chars)
        if fault:
            raise InvalidRequest(f"Text {i} {fault}", "texts")


def _fault(given: object, max_chars: int) -> str | None:
    if isinstance(given, str | tuple) and len(given) > max_chars:
        unit = "characters" if isinstance(given, str) else "token ids"
        return f"has {len(given)} {unit}; at most {max_chars} are taken. Split it."
    if isinstance(given, tuple):
        return "holds a token id below 0. Send the model's own." if min(given) < 0 else None
    if not isinstance(given, str):
        return f"is not a string but {type(given).__name__}. Send strings only."
    if "\x00" in given:
        return "holds a NUL character (U+0000). Remove it."
    try:
        given.encode()
    except UnicodeEncodeError as error:
        return f"holds half a surrogate pair at character {error.start}. Send well-formed Unicode."
    return None
