"""Jina's `return_multivector` of `POST /v1/embeddings`: one vector per token of each text."""

import base64
from functools import partial
from typing import Annotated, Any, Literal, TypedDict

import orjson

from serve_app.errors import InvalidRequest, UnsupportedOperation
from serve_app.jobs import EmbedJob, TokenVectorsJob
from serve_app.models import ModelSpec
from serve_app.results import TokenVectorsResult
from serve_app.web.dialects.usage import Usage, usage
from serve_app.web.endpoint import ParsedRequest
from serve_app.web.schema.fields import Body, BoolField, SchemaContext
from serve_app.web.schema.json_schema import BOOLEAN, STRING, VECTOR, Schema, any_of, array


class MultiVectorField(BoolField):
    """A flag that only models with one vector per token support."""

    __slots__ = ()

    def parse(self, body: Body, spec: ModelSpec) -> bool:
        """Returns the value.

        Raises:
            UnsupportedOperation: it is true, and the model has one vector per text.
        """
        value = self(body)
        if value and spec.kind != "multi-vector":
            raise UnsupportedOperation(
                f"`{self.name}` needs a multi-vector model. Leave it out.", self.name
            )
        return value is True

    def _value_schema(self, context: SchemaContext) -> Schema:
        return BOOLEAN if context.spec.kind == "multi-vector" else {"const": False}


class MultiVectorItem(TypedDict):
    """The vectors of a text's tokens, and the index of the text."""

    object: Literal["embedding"]
    index: int
    embeddings: Annotated[list[Any], array(any_of(VECTOR, STRING))]


class MultiVectorReply(TypedDict):
    """The reply with `return_multivector`."""

    object: Literal["list"]
    data: list[MultiVectorItem]
    model: str
    usage: Usage


def parsed_request(job: EmbedJob, output_type: str | None, *, as_base64: bool) -> ParsedRequest:
    """Returns the request for the token vectors of a job's texts.

    Raises:
        InvalidRequest: the vectors of tokens don't have the output type or the dimensions.
    """
    if output_type not in (None, "float", "base64"):
        raise InvalidRequest("Vectors of tokens are `float` or `base64`.", "embedding_type")
    if job.dimensions is not None:
        raise InvalidRequest(
            "Vectors of tokens have all dimensions of the model. Leave out `dimensions`.",
            "dimensions",
        )
    if job.truncation == "chunk":
        raise InvalidRequest("`chunk` needs one vector per text. Leave it out.", "chunk")
    render = partial(_render, as_base64=as_base64 or output_type == "base64")
    return ParsedRequest(TokenVectorsJob(job), render, has_vectors=False)


def _render(result: TokenVectorsResult, *, as_base64: bool) -> bytes:
    reply: MultiVectorReply = {
        "object": "list",
        "data": [
            {
                "object": "embedding",
                "index": i,
                "embeddings": _in_base64(vectors) if as_base64 else list(vectors),
            }
            for i, vectors in enumerate(result.vectors)
        ],
        "model": result.model,
        "usage": usage(result),
    }
    return orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)


def _in_base64(vectors: Any) -> list[str]:
    return [base64.b64encode(vector.astype("<f4").tobytes()).decode() for vector in vectors]
