"""Checks that texts and token ids can be embedded."""

import re
from collections.abc import Sequence

from serve_app.config import RequestSettings
from serve_app.errors import EmptyInput, InvalidRequest
from serve_app.inputs import Image, TextPair
from serve_app.service.images import image_fault

#: Characters that no text may hold: NUL, and surrogates, which in a `str` are always unpaired.
_INVALID_CHARACTER = re.compile("[\0\ud800-\udfff]")


def validate_inputs(
    inputs: Sequence[object], settings: RequestSettings, *, is_split: bool = False
) -> None:
    """Raises unless every input can be embedded.

    Args:
        inputs: of one request.
        settings: the limits.
        is_split: whether the inputs are computed in parts.

    Raises:
        InvalidRequest: the list is empty or too long; or an input is neither a string nor token
            ids, is empty or too long, or contains NUL or an unpaired surrogate. The message gives
            the index of the input.
    """
    if not inputs:
        raise EmptyInput("The list of texts is empty. Send at least one text.", "texts")
    validate_count(inputs, settings, is_split=is_split)
    for i, value in enumerate(inputs):
        if value in ("", ()) or (isinstance(value, TextPair) and "" in value.texts):
            raise EmptyInput(
                f"Text {i} is empty. Leave it out, or send at least one character.", "texts"
            )
        if isinstance(value, Image):
            fault, kind = image_fault(value, settings), "Input"
        else:
            fault, kind = _find_fault(value, settings.max_text_chars), "Text"
        if fault:
            raise InvalidRequest(f"{kind} {i} {fault}", "texts")


def validate_count(
    inputs: Sequence[object], settings: RequestSettings, *, is_split: bool = False
) -> None:
    """Raises if there are too many inputs.

    Raises:
        InvalidRequest: there are more than `RequestSettings.max_texts` allows.
    """
    limit = settings.max_texts(is_split=is_split)
    if len(inputs) > limit:
        raise InvalidRequest(
            f"{len(inputs)} texts in one request; at most {limit} are taken. Split the list.",
            "texts",
        )


def validate_reply_tokens(n_tokens: int, settings: RequestSettings) -> None:
    """Raises if a reply would list, or decode, more tokens than allowed.

    Raises:
        InvalidRequest: there are more than `max_reply_tokens`.
    """
    if n_tokens > settings.max_reply_tokens:
        raise InvalidRequest(
            f"The reply would hold {n_tokens} tokens; at most {settings.max_reply_tokens} are "
            "returned. Split the request.",
            "texts",
        )


def replace_invalid_characters(text: object) -> object:
    """Returns a text with U+FFFD in place of each NUL and unpaired surrogate; else the input."""
    if isinstance(text, str):
        return _INVALID_CHARACTER.sub("\ufffd", text)
    if isinstance(text, TextPair):
        return TextPair(*(_INVALID_CHARACTER.sub("\ufffd", part) for part in text.texts))
    return text


def _find_fault(value: object, max_chars: int) -> str | None:
    if isinstance(value, str | tuple) and len(value) > max_chars:
        unit = "characters" if isinstance(value, str) else "token ids"
        return f"has {len(value)} {unit}; at most {max_chars} are taken. Split it."
    if isinstance(value, TextPair):
        faults = (_find_fault(part, max_chars) for part in value.texts)
        return next((fault for fault in faults if fault), None)
    if isinstance(value, tuple):
        return "holds a token id below 0. Send the model's own." if min(value) < 0 else None
    if not isinstance(value, str):
        return f"is not a string but {type(value).__name__}. Send strings only."
    if (position := value.find("\0")) >= 0:
        return f"holds a NUL character (U+0000) at character {position}. Remove it."
    try:
        value.encode()
    except UnicodeEncodeError as error:
        return f"holds an unpaired surrogate at character {error.start}. Send well-formed Unicode."
    return None
