import base64
from contextlib import suppress

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.errors import EngineFailed, InvalidRequest, ModelNotFound, Overloaded
from serve_app.types import EmbedResult, Float32
from serve_app.web.dialects import openai


def result(vectors: Float32) -> EmbedResult:
    n = len(vectors)
    tokens, whole = np.full(n, 3, dtype=np.int32), np.zeros(n, dtype=np.bool_)
    return EmbedResult("m", vectors, tokens, whole, np.arange(n, dtype=np.uint8) % 3)


def test_a_string_is_one_text_and_null_stands_for_absent() -> None:
    call = openai.parse_embeddings(
        {"input": "a", "model": None, "dimensions": None, "encoding_format": None, "user": None}
    )
    assert call.job.texts == ("a",)
    assert (call.job.model, call.job.dimensions, call.encoding_format) == (None, None, "float")


def test_everything_is_read() -> None:
    call = openai.parse_embeddings(
        {"input": ["a", "b"], "model": "m", "dimensions": 3, "encoding_format": "base64"}
    )
    assert call.job.texts == ("a", "b")
    assert (call.job.model, call.job.dimensions, call.encoding_format) == ("m", 3, "base64")


def test_fields_it_does_not_know_are_left_alone() -> None:
    assert openai.parse_embeddings({"input": "a", "late_chunking": False}).job.texts == ("a",)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["input", "model", "dimensions", "encoding_format", "user"]), inner
            )
        ),
        max_leaves=12,
    )
)
def test_any_json_is_parsed_or_refused(body: object) -> None:
    with suppress(InvalidRequest):
        openai.parse_embeddings(body)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_float_and_base64_hold_the_same_bits(floats: list[float]) -> None:
    vectors = np.array([floats], dtype=np.float32)
    as_float = orjson.loads(openai.render_embeddings(result(vectors), "float"))
    as_base64 = orjson.loads(openai.render_embeddings(result(vectors), "base64"))
    read = np.array(as_float["data"][0]["embedding"], dtype=np.float32)
    raw = base64.b64decode(as_base64["data"][0]["embedding"])
    assert read.tobytes() == raw == vectors.tobytes()


def test_the_reply_has_the_dialects_shape() -> None:
    reply = orjson.loads(openai.render_embeddings(result(np.eye(2, dtype=np.float32)), "float"))
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
    body = orjson.loads(openai.render_error(error))
    assert body == {"error": {"message": str(error), **envelope}}
