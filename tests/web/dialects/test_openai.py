import base64

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.errors import EngineFailed, InvalidRequest, ModelNotFound, Overloaded
from serve_app.types import EmbedJob, EmbedResult, Float32
from serve_app.web.dialects import openai
from serve_app.web.endpoint import Call
from tests.fakes import SPEC


def result(vectors: Float32) -> EmbedResult:
    n = len(vectors)
    tokens, whole = np.full(n, 3, dtype=np.int32), np.zeros(n, dtype=np.bool_)
    return EmbedResult("m", vectors, tokens, whole, np.arange(n, dtype=np.uint8) % 3)


def embedding(call: Call) -> object:
    """The first vector of the reply that the call would get."""
    return orjson.loads(call.render(result(np.eye(2, dtype=np.float32))))["data"][0]["embedding"]


def test_a_string_is_one_text_and_null_stands_for_absent() -> None:
    call = openai.parse(
        {"input": "a", "model": None, "dimensions": None, "encoding_format": None, "user": None},
        SPEC,
    )
    assert call.job == EmbedJob(("a",))
    assert isinstance(embedding(call), list)


def test_everything_is_read() -> None:
    call = openai.parse(
        {"input": ["a", "b"], "model": "m", "dimensions": 3, "encoding_format": "base64"}, SPEC
    )
    assert call.job == EmbedJob(("a", "b"), "m", dimensions=3)
    assert isinstance(embedding(call), str)


def test_fields_it_does_not_know_are_left_alone() -> None:
    assert openai.parse({"input": "a", "late_chunking": False}, SPEC).job.texts == ("a",)


@pytest.mark.parametrize(
    ("fields", "job"),
    [
        ({"input_type": "query"}, EmbedJob(("a",), input_type="query")),
        ({"input_type": "passage"}, EmbedJob(("a",), input_type="document")),
        ({"task": "retrieval.query"}, EmbedJob(("a",), input_type="query")),
        ({"task": "text-matching"}, EmbedJob(("a",))),
        ({"input_type": "other"}, EmbedJob(("a",), input_type="other")),
        ({"output_dimension": 4}, EmbedJob(("a",), dimensions=4)),
        ({"normalized": True}, EmbedJob(("a",), normalize=True)),
        ({"truncation": False}, EmbedJob(("a",), cut=False)),
        ({"truncation": True}, EmbedJob(("a",))),
        ({"truncate": "NONE"}, EmbedJob(("a",), cut=False)),
        ({"truncate": "END"}, EmbedJob(("a",))),
        ({"truncate": False}, EmbedJob(("a",), cut=False)),
    ],
    ids=str,
)
def test_what_others_add_to_it(fields: dict[str, object], job: EmbedJob) -> None:
    assert openai.parse({"input": "a", **fields}, SPEC).job == job


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"output_dtype": "ubinary"}, [0b10100000]),
        ({"embedding_type": "binary"}, [0b10100000 - 128]),
        ({"output_dtype": "ubinary", "encoding_format": "base64"}, "oA=="),
        ({"embedding_type": "base64"}, "AACAPwAAAMAAAAA/"),
        ({"output_dtype": "float"}, [1.0, -2.0, 0.5]),
    ],
    ids=str,
)
def test_other_types_of_components(fields: dict[str, object], expected: object) -> None:
    call = openai.parse({"input": "a", **fields}, SPEC)
    given = result(np.array([[1, -2, 0.5]], dtype=np.float32))
    assert orjson.loads(call.render(given))["data"][0]["embedding"] == expected


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_float_and_base64_hold_the_same_bits(floats: list[float]) -> None:
    vectors = np.array([floats], dtype=np.float32)
    as_float = orjson.loads(openai.render(result(vectors)))
    as_base64 = orjson.loads(openai.render(result(vectors), as_base64=True))
    read = np.array(as_float["data"][0]["embedding"], dtype=np.float32)
    raw = base64.b64decode(as_base64["data"][0]["embedding"])
    assert read.tobytes() == raw == vectors.tobytes()


def test_the_reply_has_the_dialects_shape() -> None:
    reply = orjson.loads(openai.render(result(np.eye(2, dtype=np.float32))))
    assert reply == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [1.0, 0.0]},
            {"object": "embedding", "index": 1, "embedding": [0.0, 1.0]},
        ],
        "model": "m",
        "usage": {"prompt_tokens": 6, "total_tokens": 6, "cached_tokens": 3},
    }


@pytest.mark.parametrize(
    ("error", "envelope"),
    [
        (
            InvalidRequest("bad", "texts"),
            {"type": "invalid_request_error", "param": "input", "code": "invalid_value"},
        ),
        (
            ModelNotFound("no", "model"),
            {"type": "invalid_request_error", "param": "model", "code": "model_not_found"},
        ),
        (
            Overloaded("full", 3),
            {"type": "rate_limit_error", "param": None, "code": "rate_limit_exceeded"},
        ),
        (EngineFailed("x"), {"type": "server_error", "param": None, "code": "engine_failed"}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_errors_are_in_the_envelope(error: Exception, envelope: dict[str, object]) -> None:
    assert isinstance(error, InvalidRequest | Overloaded | EngineFailed)
    body = orjson.loads(openai.refuse(error).body)
    assert body == {"error": {"message": str(error), **envelope}}
