"""Reading the fields that dialects share, and writing vectors in the types that they share."""

import base64
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from serve_app.errors import InvalidRequest
from serve_app.models import ModelSpec
from serve_app.types import Float32

#: What vectors are written as. A bit is 1 where a component is above zero; `ubinary` packs eight
#: of them into a byte, the first one highest, `binary` is that less 128.
OutputType = Literal["float", "binary", "ubinary"]

#: What dialects call the two sides of a search; a model has one of the names of a side, or none.
_ROLES = (
    ("query", "search_query", "retrieval.query"),
    ("document", "passage", "search_document", "retrieval.passage"),
)
#: Other purposes, for which most models have no prompt of their own.
_PURPOSES = ("classification", "clustering", "text-matching", "separation")


def optional(body: Mapping[str, Any], name: str, kind: type, words: str) -> Any:
    """A field's value; None where it is absent or null.

    Raises:
        InvalidRequest: it is of another kind.
    """
    value = body.get(name)
    if value is None or (isinstance(value, kind) and (kind is bool) == isinstance(value, bool)):
        return value
    raise InvalidRequest(f"`{name}` must be {words}, not {type(value).__name__}.", name)


def one_of(value: Any, name: str, choices: tuple[str, ...]) -> str | None:
    """A field's value that is one of some words, or null.

    Raises:
        InvalidRequest: it is something else.
    """
    if value is not None and value not in choices:
        words = ", ".join(map(repr, choices))
        raise InvalidRequest(f"`{name}` must be one of {words}; it was {value!r}.", name)
    word: str | None = value
    return word


def texts(given: Any, name: str) -> tuple[str, ...]:
    """A string, or a list of what should be strings.

    Raises:
        InvalidRequest: it is neither, or holds token ids.
    """
    if given is None:
        raise InvalidRequest(f"`{name}` is missing. Send a string or a list of strings.", "texts")
    if isinstance(given, str):
        return (given,)
    if not isinstance(given, list):
        raise InvalidRequest(
            f"`{name}` must be a string or a list of strings, not {type(given).__name__}.", "texts"
        )
    if given and all(_is_token(item) or _is_token_list(item) for item in given):
        raise InvalidRequest(
            f"`{name}` holds token ids, which are not taken yet. Send the text itself; with "
            "LangChain's OpenAIEmbeddings set `check_embedding_ctx_length=False`.",
            "texts",
        )
    return tuple(given)


def _is_token(item: Any) -> bool:
    return isinstance(item, int) and not isinstance(item, bool)


def _is_token_list(item: Any) -> bool:
    return isinstance(item, list) and bool(item) and all(_is_token(token) for token in item)


def input_type(asked: str | None, spec: ModelSpec) -> str | None:
    """The model's own name for what a text is for; None: its default.

    A model without prompts is asked for queries and documents alike. A name that no dialect knows
    is given back as it is: the model may know it, or refuses it and lists what it knows.
    """
    if asked is None or asked in spec.prompts:
        return asked
    for names in _ROLES:
        if asked in names:
            return next((name for name in names if name in spec.prompts), None)
    return None if asked in _PURPOSES else asked


def encode(vectors: Float32, output: OutputType, *, as_base64: bool) -> list[Any]:
    """Each of n vectors as JSON takes it: rows of an array, or base64 of their bytes.

    Float components are little-endian float32 in base64, and keep every bit as decimals too, since
    the shortest decimal of a float32 reads back as the same float32.
    """
    rows: Any = vectors.astype("<f4", copy=False)
    if output != "float":
        rows = np.packbits(vectors > 0, axis=1)
        if output == "binary":
            rows = (rows.astype(np.int16) - 128).astype(np.int8)
    if as_base64:
        return [base64.b64encode(row.tobytes()).decode() for row in rows]
    return list(rows)


def output_type(asked: Any, name: str) -> OutputType:
    """The type of the components that a field's value names; null: float.

    Raises:
        InvalidRequest: it names none.
    """
    if asked in ("int8", "uint8"):
        raise InvalidRequest(
            f"`{name}: {asked}` isn't served yet: it needs ranges calibrated for the model. Take "
            "'float', 'binary' or 'ubinary'.",
            name,
        )
    match one_of(asked, name, ("float", "base64", "binary", "ubinary")):
        case "binary":
            return "binary"
        case "ubinary":
            return "ubinary"
        case _:
            return "float"
