"""Bodies of TEI's requests and replies: the fields, and a parse and a render function per route.

`tei` binds them to paths.
"""

from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict

import numpy as np
import orjson

from serve_app.errors import EmptyInput, InvalidRequest
from serve_app.inputs import Input
from serve_app.jobs import (
    DecodeJob,
    EmbedJob,
    SparseJob,
    TokenizeJob,
    TokenVectorsJob,
)
from serve_app.models import ModelSpec
from serve_app.results import EmbedResult, SparseResult, TokenVectorsResult
from serve_app.types import Tokenization, Truncation
from serve_app.web.dialects import openai_requests
from serve_app.web.dialects.extensions import CHUNK, USE_CACHE
from serve_app.web.dialects.task_support import require_task
from serve_app.web.endpoint import ParsedRequest
from serve_app.web.schema.fields import (
    Body,
    BoolField,
    DimensionsField,
    EnumField,
    ObjectField,
    SchemaContext,
    TextField,
    TextsField,
    TokenIdsField,
)
from serve_app.web.schema.input_type import InputTypeField
from serve_app.web.schema.json_schema import Schema, any_of
from serve_app.web.schema.vector_encoding import float_rows

_INPUTS = TextsField(
    "inputs", "A text, or a list of texts or of token ids.", required=True, allow_token_ids=True
)
_TRUNCATE = BoolField("truncate", "If false, texts over the token limit are errors.")
_TRUNCATION_DIRECTION = EnumField(
    "truncation_direction",
    "The end at which texts over the token limit are truncated.",
    choices=("Right", "right", "Left", "left"),
)
_PROMPT_NAME = InputTypeField("prompt_name", "Name of the model's prompt to put before each text.")
_NORMALIZE = BoolField(
    "normalize",
    "If false, vectors keep the model's length, which is 1 where the model itself normalizes them. "
    "By default they have unit length.",
)
_DIMENSIONS = DimensionsField(
    "dimensions", "Number of leading components to return, normalized to unit length."
)
TRUNCATION = (_TRUNCATE, _TRUNCATION_DIRECTION)
_END_DIRECTION = EnumField(
    "truncation_direction",
    "The end at which texts over the token limit are truncated: always the right one.",
    choices=("Right", "right"),
)
#: For tasks that can't truncate the start of a text.
END_TRUNCATION = (_TRUNCATE, _END_DIRECTION)
_SOURCE_SENTENCE = TextField(
    "source_sentence", "The text to compare the sentences with.", required=True
)
_SENTENCES = TextsField(
    "sentences", "The texts to compare.", required=True, allow_single=False, reserved=1
)
_PAIR = ObjectField(
    "inputs", "The texts to compare.", required=True, fields=(_SOURCE_SENTENCE, _SENTENCES)
)
_PARAMETERS = ObjectField(
    "parameters", "Options as in `/embed`.", fields=(*TRUNCATION, _PROMPT_NAME)
)
_TOKENIZE_INPUTS = TextsField("inputs", "A text, or a list of texts.", required=True)
_ADD_SPECIAL_TOKENS = BoolField(
    "add_special_tokens", "If false, special tokens such as [CLS] are left out; true by default."
)
_IDS = TokenIdsField("ids", "Token ids of one text, or a list of such lists.", required=True)
_SKIP_SPECIAL_TOKENS = BoolField(
    "skip_special_tokens", "If false, special tokens such as [CLS] are decoded; true by default."
)

EMBED_FIELDS = (
    _INPUTS,
    *TRUNCATION,
    _PROMPT_NAME,
    _NORMALIZE,
    _DIMENSIONS,
    CHUNK,
    USE_CACHE,
)
EMBED_ALL_FIELDS = (_INPUTS, *TRUNCATION, _PROMPT_NAME)
SPARSE_FIELDS = (_INPUTS, *END_TRUNCATION, _PROMPT_NAME, USE_CACHE)
SIMILARITY_FIELDS = (_PAIR, _PARAMETERS)
TOKENIZE_FIELDS = (_TOKENIZE_INPUTS, _ADD_SPECIAL_TOKENS, _PROMPT_NAME)
DECODE_FIELDS = (_IDS, _SKIP_SPECIAL_TOKENS)


class _TextsOrPairField(TextsField):
    """The `inputs` of `/embed` or of `/similarity`."""

    __slots__ = ()

    def _value_schema(self, context: SchemaContext) -> Schema:
        return any_of(TextsField._value_schema(self, context), _PAIR._value_schema(context))


_TEXTS_OR_PAIR = _TextsOrPairField(
    "inputs", "Inputs of `/embed` or of `/similarity`.", required=True, allow_token_ids=True
)
ROOT_FIELDS = (_TEXTS_OR_PAIR, *EMBED_FIELDS[1:], _PARAMETERS)


def parse_embed(body: Body, spec: ModelSpec) -> ParsedRequest:
    """Parses the body of `POST /embed`.

    Raises:
        InvalidRequest: a field is missing, has a wrong type or an unknown value.
    """
    return ParsedRequest(_embed_job(body, spec), _render_embed)


def _embed_job(body: Body, spec: ModelSpec) -> EmbedJob:
    ends, chunk = truncation(body), CHUNK(body)
    return EmbedJob(
        _INPUTS(body),
        input_type=_PROMPT_NAME(body, spec),
        dimensions=_DIMENSIONS(body),
        normalize=_NORMALIZE(body) is not False,
        truncation="chunk" if chunk else ends,
        use_cache=USE_CACHE(body) is not False,
    )


def truncation(body: Body) -> Truncation:
    """Returns the treatment of texts over the token limit."""
    direction = _TRUNCATION_DIRECTION(body)
    if _TRUNCATE(body) is False:
        return "error"
    return "start" if direction in ("Left", "left") else "end"


def end_truncation(body: Body) -> Truncation:
    """Returns the treatment of texts over the token limit, for `END_TRUNCATION`."""
    _END_DIRECTION(body)
    return "error" if _TRUNCATE(body) is False else "end"


def parse_embed_all(body: Body, spec: ModelSpec) -> ParsedRequest:
    """Parses the body of `POST /embed_all`.

    Raises:
        InvalidRequest: a field is missing, has a wrong type or an unknown value.
    """
    job = EmbedJob(_INPUTS(body), input_type=_PROMPT_NAME(body, spec), truncation=truncation(body))
    return ParsedRequest(TokenVectorsJob(job), _render_embed_all)


def parse_embed_sparse(body: Body, spec: ModelSpec) -> ParsedRequest:
    """Parses the body of `POST /embed_sparse`.

    Raises:
        InvalidRequest: a field is missing, has a wrong type or an unknown value.
        UnsupportedOperation: the model isn't sparse.
    """
    require_task(spec, "embed_sparse", "Model is not an embedding model with SPLADE pooling")
    job = EmbedJob(
        _INPUTS(body),
        input_type=_PROMPT_NAME(body, spec),
        use_cache=USE_CACHE(body) is not False,
        truncation=end_truncation(body),
    )
    return ParsedRequest(SparseJob(job), _render_sparse, has_vectors=False)


def parse_similarity(body: Body, spec: ModelSpec) -> ParsedRequest:
    """Parses the body of `POST /similarity`.

    Raises:
        InvalidRequest: a field is missing, has a wrong type or an unknown value.
    """
    pair = _PAIR(body) or {}
    source = _SOURCE_SENTENCE(pair)
    sentences = _SENTENCES(pair)
    if source is None:
        raise InvalidRequest("`inputs` must hold `source_sentence` and `sentences`.", "inputs")
    if not sentences:
        raise EmptyInput("`sentences` is empty. Send at least one.", "inputs")
    parameters = _PARAMETERS(body) or {}
    texts: tuple[Input, ...] = (source, *sentences)
    job = EmbedJob(
        texts,
        input_type=_PROMPT_NAME(parameters, spec),
        normalize=True,
        truncation=truncation(parameters),
    )
    return ParsedRequest(job, _render_similarity, has_vectors=False)


def parse_root(body: Body, spec: ModelSpec) -> ParsedRequest:
    """Parses a body of `POST /embed`, or one of `POST /similarity` if `inputs` is an object.

    With texts, `parameters` hold fields that the body itself doesn't. Fields that the request
    doesn't use are validated too.

    Raises:
        InvalidRequest: a field is missing, has a wrong type or an unknown value.
    """
    parameters = _PARAMETERS(body) or {}
    truncation(parameters)
    openai_requests.validate_ignored(spec, input_type=_PROMPT_NAME(parameters, spec))
    if not isinstance(body.get("inputs"), dict):
        names = [field.name for field in _PARAMETERS.fields if body.get(field.name) is None]
        options = {name: parameters[name] for name in names if parameters.get(name) is not None}
        return parse_embed({**body, **options} if options else body, spec)
    unused = _embed_job({**body, "inputs": []}, spec)
    openai_requests.validate_ignored(spec, unused.dimensions, unused.input_type)
    return parse_similarity(body, spec)


def parse_tokenize(body: Body, spec: ModelSpec) -> ParsedRequest:
    """Parses the body of `POST /tokenize`.

    Raises:
        InvalidRequest: a field is missing, has a wrong type or an unknown value.
    """
    texts = _TOKENIZE_INPUTS(body)
    job = TokenizeJob(
        texts,  # type: ignore[arg-type]  # the service rejects items that aren't strings
        add_special_tokens=_ADD_SPECIAL_TOKENS(body) is not False,
        input_type=_PROMPT_NAME(body, spec),
    )
    return ParsedRequest(job, _render_tokens)


def parse_decode(body: Body, spec: ModelSpec) -> ParsedRequest:
    """Parses the body of `POST /decode`.

    Raises:
        InvalidRequest: a field is missing or has a wrong type.
    """
    return ParsedRequest(DecodeJob(_IDS(body), _SKIP_SPECIAL_TOKENS(body) is not False), _dumps)


class Token(TypedDict):
    """A token; special ones have no position in the text."""

    id: int
    text: str
    special: bool
    start: NotRequired[int]
    stop: NotRequired[int]


class TokenWeight(TypedDict):
    """A component of a sparse vector: a token id of the vocabulary, and its weight."""

    index: int
    value: float


def _dumps(reply: Any) -> bytes:
    return orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)


def _render_embed(result: EmbedResult) -> bytes:
    return _dumps(float_rows(result))


def _render_embed_all(result: TokenVectorsResult) -> bytes:
    return _dumps(result.vectors)


def _render_sparse(result: SparseResult) -> bytes:
    vectors: list[list[TokenWeight]] = [
        [
            {"index": index, "value": weight}
            for index, weight in zip(row["index"].tolist(), row["weight"], strict=True)
        ]
        for row in result.vectors
    ]
    return _dumps(vectors)


def _render_similarity(result: EmbedResult) -> bytes:
    source, *sentences = result.vectors
    return _dumps(np.stack(sentences) @ source)


def _render_tokens(rows: Sequence[Tokenization]) -> bytes:
    return _dumps([_tokens(row) for row in rows])


def _tokens(row: Tokenization) -> list[Token]:
    tokens: list[Token] = []
    columns = zip(row.ids, row.tokens, row.special_tokens_mask, row.offsets, strict=True)
    for id_, text, special, (start, stop) in columns:
        token: Token = {"id": id_, "text": text, "special": special}
        if not special:
            token["start"], token["stop"] = start, stop
        tokens.append(token)
    return tokens
