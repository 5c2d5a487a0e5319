"""The body of OpenAI's `POST /v1/embeddings`: its fields, and the parse and render functions.

`openai` binds them to the path. The fields include those of Jina, Voyage, NIM and vLLM that don't
contradict OpenAI's.
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, TypedDict

import orjson

from serve_app.errors import InvalidRequest, UnsupportedOperation
from serve_app.jobs import EmbedJob
from serve_app.models import ModelSpec
from serve_app.results import EmbedResult
from serve_app.types import Lane, Truncation
from serve_app.web.dialects import multi_vector
from serve_app.web.dialects.extensions import CHUNK, USE_CACHE
from serve_app.web.dialects.multi_vector import MultiVectorField
from serve_app.web.dialects.openai_inputs import InputField, ModalityField
from serve_app.web.dialects.usage import Usage, usage
from serve_app.web.endpoint import ParsedRequest
from serve_app.web.schema.fields import (
    Body,
    BoolField,
    DimensionsField,
    EnumField,
    Field,
    IntField,
    ModelField,
    SchemaContext,
    StringField,
)
from serve_app.web.schema.input_type import InputTypeField
from serve_app.web.schema.json_schema import BOOLEAN, INTEGER, Schema, any_of, enum
from serve_app.web.schema.unit_length import UnitLengthField
from serve_app.web.schema.vector_encoding import EMBEDDING, OutputTypeField, VectorEncoder

INPUT = InputField(
    "input",
    "A text, or a list of texts, of objects `{text}` or `{image}` (Jina) or of token ids.",
    required=True,
    allow_token_ids=True,
)
MODALITY = ModalityField("modality", "`text`, or `image` for data URIs; or a list (NIM).")
_MODEL = ModelField("model", "Name or alias of the served model.")
ENCODING_FORMAT = EnumField(
    "encoding_format",
    "`float` returns JSON numbers, `base64` the little-endian bytes of each vector.",
    choices=("float", "base64"),
)
_DIMENSIONS = DimensionsField(
    "dimensions", "Number of leading components to return, normalized to unit length."
)
_USER = StringField("user", "Accepted for compatibility and ignored.")
_INPUT_TYPE = InputTypeField(
    "input_type", "Purpose of the texts; selects the model's prompt (Voyage, NIM)."
)
_TASK = InputTypeField("task", "Purpose of the texts; selects the model's prompt (Jina).")
_OUTPUT_DIMENSION = DimensionsField("output_dimension", "Same as `dimensions` (Voyage).")
_OUTPUT_DTYPE = OutputTypeField("output_dtype", "Type of the components (Voyage).")
_EMBEDDING_TYPE = OutputTypeField("embedding_type", "Type of the components (Jina, NIM).")
_NORMALIZED = UnitLengthField(
    "normalized", "If true, vectors are normalized to unit length for every model (Jina)."
)
_NORMALIZE = UnitLengthField("normalize", "Same as `normalized` (vLLM).")
_USE_ACTIVATION = UnitLengthField("use_activation", "Same as `normalized` (vLLM).")
_NORMALIZED_FIELDS = (_NORMALIZED, _NORMALIZE, _USE_ACTIVATION)
_TRUNCATION = BoolField("truncation", "If false, texts over the token limit are errors (Voyage).")
_TRUNCATION_SIDE = EnumField(
    "truncation_side",
    "The end at which texts over the token limit are truncated (vLLM).",
    choices=("left", "right"),
)
_PRIORITY = IntField("priority", "Values above 0 put the request into the bulk lane (vLLM).")


class _TokenLimitField(IntField):
    """A token limit for each text; -1 stands for the model's limit, as in vLLM."""

    __slots__ = ()

    def __call__(self, body: Body) -> int | None:
        limit = IntField.__call__(self, body)
        return None if limit == -1 else limit

    def _value_schema(self, context: SchemaContext) -> Schema:
        return any_of({"const": -1}, INTEGER | {"minimum": 1, "maximum": context.spec.max_tokens})


_TOKEN_LIMIT = _TokenLimitField(
    "truncate_prompt_tokens",
    "Number of tokens to truncate each text to; -1 is the model's limit (vLLM).",
    minimum=-1,
)


@dataclass(frozen=True, slots=True)
class _FixedFlag(BoolField):
    """A flag with one valid value: ignoring another would return other vectors than requested."""

    value: bool = False

    def __call__(self, body: Body) -> bool | None:
        if BoolField.__call__(self, body) is (not self.value):
            raise InvalidRequest(f"`{self.name}` isn't served here. Leave it out.", self.name)
        return self.value

    def _value_schema(self, context: SchemaContext) -> Schema:
        return {"const": self.value}


class _MessagesField(Field):
    """A chat, which only a chat template makes a text."""

    __slots__ = ()

    def __call__(self, body: Body) -> None:
        if body.get(self.name) is not None:
            raise UnsupportedOperation(
                f"`{self.name}` is unsupported: the model has no chat template that makes them a "
                "text. Send texts as `input`.",
                self.name,
            )

    def schema(self, context: SchemaContext) -> Schema:
        return {"type": "null", "description": self.description}


_MESSAGES = _MessagesField("messages", "Unsupported: the model has no chat template (vLLM).")
_LATE_CHUNKING = _FixedFlag("late_chunking", "Unsupported; must be false (Jina).")
_RETURN_MULTIVECTOR = MultiVectorField(
    "return_multivector",
    "If true, items have one vector per token, as `embeddings`; multi-vector models only (Jina).",
)
_ADD_SPECIAL_TOKENS = _FixedFlag(
    "add_special_tokens", "Texts always get special tokens; must be true (vLLM).", value=True
)
_EMBED_DTYPE = EnumField("embed_dtype", "Only `float32` is supported (vLLM).", choices=("float32",))
_ENDIANNESS = EnumField(
    "endianness", "Only little-endian is supported (vLLM).", choices=("native", "little")
)
_PADDING = EnumField("padding", "Only `do_not_pad` is supported (vLLM).", choices=("do_not_pad",))
_CACHE_SALT = StringField(
    "cache_salt", "If set, the cache is neither read nor written, as with `use_cache` (vLLM)."
)
#: Fields whose only valid values are the defaults.
_FIXED_VALUE_FIELDS = (
    _MESSAGES,
    _LATE_CHUNKING,
    _ADD_SPECIAL_TOKENS,
    _EMBED_DTYPE,
    _ENDIANNESS,
    _PADDING,
)


class _TruncateField(EnumField):
    """A boolean, as in Jina, or one of the choices, as in NIM."""

    __slots__ = ()

    def __call__(self, body: Body) -> str | None:
        value = body.get(self.name)
        if isinstance(value, bool):
            return "END" if value else "NONE"
        return EnumField.__call__(self, body)

    def _value_schema(self, context: SchemaContext) -> Schema:
        return any_of(BOOLEAN, enum(self.choices))


_TRUNCATE = _TruncateField(
    "truncate",
    "The end at which texts over the token limit are truncated; true is END. With false or NONE "
    "they are errors (Jina, NIM).",
    choices=("NONE", "START", "END"),
)
FIELDS = (
    INPUT,
    _MODEL,
    ENCODING_FORMAT,
    _DIMENSIONS,
    _USER,
    _INPUT_TYPE,
    _TASK,
    _OUTPUT_DIMENSION,
    _OUTPUT_DTYPE,
    _EMBEDDING_TYPE,
    *_NORMALIZED_FIELDS,
    _TRUNCATE,
    _TRUNCATION,
    _TRUNCATION_SIDE,
    _TOKEN_LIMIT,
    _PRIORITY,
    _CACHE_SALT,
    MODALITY,
    _RETURN_MULTIVECTOR,
    *_FIXED_VALUE_FIELDS,
    CHUNK,
    USE_CACHE,
)
#: OpenAI's own fields. Requests without others skip the remaining fields, in half the time.
_OPENAI_FIELDS = {field.name for field in (INPUT, _MODEL, ENCODING_FORMAT, _DIMENSIONS, _USER)}


def parse(body: Body, spec: ModelSpec) -> ParsedRequest:
    """Parses the body of `POST /v1/embeddings`. An optional field that is null counts as absent.

    Raises:
        InvalidRequest: a field is missing, has a wrong type or an unknown value. The service
            validates the model's name, the number of texts and their lengths.
        UnsupportedOperation: the request holds messages, or inputs that aren't texts.
    """
    if body.keys() <= _OPENAI_FIELDS:
        job = EmbedJob(INPUT.parse(body, spec), dimensions=_DIMENSIONS(body))
        encoding, dtype = ENCODING_FORMAT(body), None
        _USER(body)
    else:
        job, encoding, dtype = _parse_all_fields(body, spec)
        if _RETURN_MULTIVECTOR.parse(body, spec):
            return multi_vector.parsed_request(job, dtype, as_base64=encoding == "base64")
    encoder = VectorEncoder(spec, dtype, as_base64=encoding == "base64")
    return ParsedRequest(job, partial(render, encoder=encoder), has_floats=encoder.is_float)


def _parse_all_fields(body: Body, spec: ModelSpec) -> tuple[EmbedJob, str | None, str | None]:
    _USER(body)
    for field in _FIXED_VALUE_FIELDS:
        field(body)
    dimensions, output_dimension = _DIMENSIONS(body), _OUTPUT_DIMENSION(body)
    input_type, task = _INPUT_TYPE(body, spec), _TASK(body, spec)
    dtype, embedding_type = _OUTPUT_DTYPE(body), _EMBEDDING_TYPE(body)
    use_cache = USE_CACHE(body) is not False
    validate_ignored(spec, output_dimension, task)
    job = EmbedJob(
        texts=MODALITY.parse(body, spec, INPUT.parse(body, spec)),
        input_type=task if input_type is None else input_type,
        dimensions=output_dimension if dimensions is None else dimensions,
        lane=_lane(body),
        use_cache=not _CACHE_SALT(body) and use_cache,
        normalize=True in [field(body, spec) for field in _NORMALIZED_FIELDS],
        truncation=_truncation(body),
        max_tokens=_TOKEN_LIMIT(body),
    )
    return job, ENCODING_FORMAT(body), dtype or embedding_type


def validate_ignored(
    spec: ModelSpec, dimensions: int | None = None, input_type: str | None = None
) -> None:
    """Validates values that the job may ignore because another field with the same meaning is set.

    Raises:
        InvalidRequest: the model has not as many dimensions, or no such input type.
    """
    if input_type is not None:
        spec.prompt(input_type)
    if dimensions is not None and not 1 <= dimensions <= spec.dim:
        raise InvalidRequest(
            f"`output_dimension` must be between 1 and {spec.dim}; it was {dimensions}.",
            "output_dimension",
        )


def _lane(body: Body) -> Lane | None:
    return "bulk" if (_PRIORITY(body) or 0) > 0 else None


def _truncation(body: Body) -> Truncation:
    side, truncate, truncation = _TRUNCATION_SIDE(body), _TRUNCATE(body), _TRUNCATION(body)
    if CHUNK(body):
        return "chunk"
    if truncation is False or truncate == "NONE":
        return "error"
    return "start" if truncate == "START" or side == "left" else "end"


class EmbeddingItem(TypedDict):
    """A vector and the index of its text."""

    object: Literal["embedding"]
    index: int
    embedding: Annotated[Any, EMBEDDING]


class EmbeddingsReply(TypedDict):
    """The reply of `POST /v1/embeddings`."""

    object: Literal["list"]
    data: list[EmbeddingItem]
    model: str
    usage: Usage


def embedding_items(result: EmbedResult, encoder: VectorEncoder) -> list[EmbeddingItem]:
    """Returns the vectors of a result, in the order of its texts."""
    return [
        {"object": "embedding", "index": i, "embedding": vector}
        for i, vector in enumerate(encoder(result))
    ]


def embeddings_reply(result: EmbedResult, encoder: VectorEncoder) -> EmbeddingsReply:
    """Returns the reply of a result."""
    return {
        "object": "list",
        "data": embedding_items(result, encoder),
        "model": result.model,
        "usage": usage(result),
    }


def render(result: EmbedResult, *, encoder: VectorEncoder) -> bytes:
    """Returns the reply's body."""
    return orjson.dumps(embeddings_reply(result, encoder), option=orjson.OPT_SERIALIZE_NUMPY)
