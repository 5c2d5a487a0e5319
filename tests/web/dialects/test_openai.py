import base64
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.errors import InvalidRequest
from serve_app.jobs import EmbedJob
from serve_app.models import ModelSpec
from serve_app.results import EmbedResult
from serve_app.types import Float32
from serve_app.web.dialects import openai_requests, sidecar
from serve_app.web.dialects.tei_requests import parse_embed
from serve_app.web.endpoint import ParsedRequest
from serve_app.web.schema.fields import Body
from serve_app.web.schema.vector_encoding import VectorEncoder
from tests.fakes import SPEC

FLOATS = VectorEncoder(SPEC, None)


def result(vectors: Float32) -> EmbedResult:
    n = len(vectors)
    token_counts, truncated = np.full(n, 3, dtype=np.int32), np.zeros(n, dtype=np.bool_)
    return EmbedResult("m", vectors, token_counts, truncated, np.arange(n, dtype=np.uint8) % 3)


def embedding(parsed: ParsedRequest) -> object:
    """Returns the first vector of the reply to a parsed request."""
    return orjson.loads(parsed.render(result(np.eye(2, dtype=np.float32))))["data"][0]["embedding"]


def test_a_string_is_a_text_and_null_counts_as_absent() -> None:
    parsed = openai_requests.parse(
        {"input": "a", "model": None, "dimensions": None, "encoding_format": None, "user": None},
        SPEC,
    )
    assert parsed.job == EmbedJob(("a",))
    assert isinstance(embedding(parsed), list)


def test_all_fields_of_openai() -> None:
    parsed = openai_requests.parse(
        {"input": ["a", "b"], "model": "m", "dimensions": 3, "encoding_format": "base64"}, SPEC
    )
    assert parsed.job == EmbedJob(("a", "b"), dimensions=3)
    assert isinstance(embedding(parsed), str)


def test_unknown_fields_are_ignored() -> None:
    assert openai_requests.parse({"input": "a", "unknown": 1}, SPEC).job == EmbedJob(("a",))


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
        ({"normalize": True}, EmbedJob(("a",), normalize=True)),
        ({"use_activation": True}, EmbedJob(("a",), normalize=True)),
        ({"normalize": False, "normalized": False}, EmbedJob(("a",))),
        ({"add_special_tokens": True}, EmbedJob(("a",))),
        ({"truncation": False}, EmbedJob(("a",), truncation="error")),
        ({"truncation": True}, EmbedJob(("a",))),
        ({"truncate": "NONE"}, EmbedJob(("a",), truncation="error")),
        ({"truncate": "END"}, EmbedJob(("a",))),
        ({"truncate": "START"}, EmbedJob(("a",), truncation="start")),
        ({"truncate": True}, EmbedJob(("a",))),
        ({"truncation_side": "left"}, EmbedJob(("a",), truncation="start")),
        ({"truncate_prompt_tokens": 7}, EmbedJob(("a",), max_tokens=7)),
        ({"truncate_prompt_tokens": -1}, EmbedJob(("a",))),
        ({"chunk": True, "truncate": "NONE"}, EmbedJob(("a",), truncation="chunk")),
        ({"priority": 1}, EmbedJob(("a",), lane="bulk")),
        ({"priority": 0, "late_chunking": False, "endianness": "little"}, EmbedJob(("a",))),
        ({"use_cache": False}, EmbedJob(("a",), use_cache=False)),
        ({"input": [101, 102]}, EmbedJob(((101, 102),))),
        ({"input": [[101, 102], [101, 7, 102]]}, EmbedJob(((101, 102), (101, 7, 102)))),
        ({"truncate": False}, EmbedJob(("a",), truncation="error")),
        ({"cache_salt": "x"}, EmbedJob(("a",), use_cache=False)),
        ({"cache_salt": "x", "use_cache": True}, EmbedJob(("a",), use_cache=False)),
        ({"padding": "do_not_pad", "return_multivector": False}, EmbedJob(("a",))),
        ({"modality": "text"}, EmbedJob(("a",))),
        ({"modality": ["text"]}, EmbedJob(("a",))),
        ({"messages": None}, EmbedJob(("a",))),
        ({"input": [{"text": "b"}, "c", [101, 102]]}, EmbedJob(("b", "c", (101, 102)))),
    ],
    ids=str,
)
def test_fields_of_other_apis(fields: dict[str, object], job: EmbedJob) -> None:
    assert openai_requests.parse({"input": "a", **fields}, SPEC).job == job


@pytest.mark.parametrize(
    "fields",
    [
        {"add_special_tokens": False},
        {"late_chunking": True},
        {"embed_dtype": "float16"},
        {"endianness": "big"},
        {"padding": "max_length"},
        {"return_multivector": True},
        {"modality": "image"},
        {"modality": ["text", "image"]},
        {"messages": [{"role": "user", "content": "a"}]},
        {"normalize": False},
        {"normalized": False},
        {"use_activation": False},
    ],
    ids=str,
)
def test_fields_that_would_change_the_vector_are_errors(fields: dict[str, object]) -> None:
    (name,) = fields
    with pytest.raises(InvalidRequest, match=f"`{name}`"):
        openai_requests.parse({"input": "a", **fields}, replace(SPEC, unit_length=True))


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"image": "https://example.com/a.png"}, "Input 1 has the member 'image'"),
        ({"text": "b", "image": "aGk="}, "Input 1 has the member 'image'"),
        ({"text": 1}, "Input 1 must have a string as its `text`"),
        ({}, "Input 1 must have a string as its `text`"),
    ],
    ids=str,
)
def test_an_object_in_place_of_a_text_holds_its_text_only(item: object, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        openai_requests.parse({"input": ["a", item]}, SPEC)


@pytest.mark.parametrize(
    ("parse", "body"), [(parse_embed, {"inputs": "a"}), (sidecar.parse, {"texts": ["a"]})]
)
def test_normalize_false_is_harmless_where_the_model_normalizes(
    parse: Callable[[Body, ModelSpec], ParsedRequest], body: dict[str, object]
) -> None:
    """Haystack sends it by default; sentence-transformers returns unit length then, too."""
    job = parse({**body, "normalize": False}, replace(SPEC, unit_length=True)).job
    assert isinstance(job, EmbedJob)
    assert not job.normalize


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
def test_output_types(fields: dict[str, object], expected: object) -> None:
    parsed = openai_requests.parse({"input": "a", **fields}, SPEC)
    embedded = result(np.array([[1, -2, 0.5]], dtype=np.float32))
    assert orjson.loads(parsed.render(embedded))["data"][0]["embedding"] == expected


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_float_and_base64_hold_the_same_bits(floats: list[float]) -> None:
    vectors = np.array([floats], dtype=np.float32)
    as_float = orjson.loads(openai_requests.render(result(vectors), encoder=FLOATS))
    as_base64 = orjson.loads(
        openai_requests.render(result(vectors), encoder=VectorEncoder(SPEC, "base64"))
    )
    read = np.array(as_float["data"][0]["embedding"], dtype=np.float32)
    raw = base64.b64decode(as_base64["data"][0]["embedding"])
    assert read.tobytes() == raw == vectors.tobytes()
