"""The client library `cohere`."""

import base64
from typing import Any

import cohere
import numpy as np
import pytest
from cohere.core.request_options import RequestOptions

from serve_app.service.dimensions import truncate_dimensions
from tests.clients.app_server import (
    DIM,
    KEY,
    MODEL,
    TEXTS,
    AppServer,
    equal_vectors,
    expected_vectors,
    token_count,
)

NO_RETRIES = RequestOptions(max_retries=0)


def embed(server: AppServer, **options: Any) -> Any:
    client = cohere.ClientV2(api_key=KEY, base_url=server.url)
    defaults = {"model": MODEL, "texts": TEXTS, "input_type": "search_document"}
    return client.embed(**{**defaults, "request_options": NO_RETRIES, **options})


@pytest.mark.parametrize(
    ("input_type", "prompt"),
    [("search_document", "document"), ("search_query", "query"), ("clustering", "")],
)
def test_embeds(server: AppServer, input_type: str, prompt: str) -> None:
    reply = embed(server, input_type=input_type, embedding_types=["float"])
    assert equal_vectors(reply.embeddings.float_, expected_vectors(*TEXTS, prompt=prompt))
    assert reply.texts == TEXTS
    assert reply.response_type == "embeddings_by_type"
    assert reply.meta.billed_units.input_tokens == token_count(*TEXTS, prompt=prompt)


async def test_embeds_async(server: AppServer) -> None:
    async with cohere.AsyncClientV2(api_key=KEY, base_url=server.url) as client:
        reply = await client.embed(
            model=MODEL, texts=TEXTS, input_type="search_query", embedding_types=["float"]
        )
    assert equal_vectors(reply.embeddings.float_, expected_vectors(*TEXTS, prompt="query"))


def test_default_type_is_float(server: AppServer) -> None:
    assert equal_vectors(
        embed(server).embeddings.float_, expected_vectors(*TEXTS, prompt="document")
    )


def test_batches_above_the_limit_of_cohere(server: AppServer) -> None:
    texts = [f"text number {i}" for i in range(200)]
    reply = embed(server, texts=texts, embedding_types=["float", "ubinary"])
    expected = expected_vectors(*texts, prompt="document")
    assert equal_vectors(reply.embeddings.float_, expected)
    assert np.array_equal(reply.embeddings.ubinary, np.packbits(expected > 0, axis=1))


def test_several_types_in_one_reply(server: AppServer) -> None:
    reply = embed(server, embedding_types=["float", "base64", "binary", "ubinary"])
    expected = expected_vectors(*TEXTS, prompt="document")
    raw = [np.frombuffer(base64.b64decode(text), "<f4") for text in reply.embeddings.base64]
    assert equal_vectors(raw, expected)
    assert equal_vectors(reply.embeddings.float_, expected)
    bits = np.packbits(expected > 0, axis=1)
    assert np.array_equal(reply.embeddings.ubinary, bits)
    assert np.array_equal(reply.embeddings.binary, bits.astype(int) - 128)
    assert reply.embeddings.int8 is None


def test_byte_types(server: AppServer) -> None:
    reply = embed(server, embedding_types=["float", "int8", "uint8"]).embeddings
    signed, unsigned = np.array(reply.int8), np.array(reply.uint8)
    assert signed.shape == unsigned.shape == (len(TEXTS), DIM)
    assert -128 <= signed.min() < 0 < signed.max() <= 127
    assert 0 <= unsigned.min() < 128 < unsigned.max() <= 255
    assert reply.int8[0] == reply.int8[3] != reply.int8[1]  # TEXTS[0] == TEXTS[3]
    assert equal_vectors(reply.float_, expected_vectors(*TEXTS, prompt="document"))


def test_inputs_of_content_parts_with_reduced_dimensions(server: AppServer) -> None:
    inputs = [{"content": [{"type": "text", "text": text}]} for text in TEXTS]
    reply = embed(server, texts=None, inputs=inputs, output_dimension=16)
    expected = truncate_dimensions(expected_vectors(*TEXTS, prompt="document"), 16)
    assert equal_vectors(reply.embeddings.float_, expected)


def test_an_unknown_model_is_rejected(server: AppServer) -> None:
    with pytest.raises(cohere.NotFoundError) as raised:
        embed(server, model="embed-v4.0")
    assert "isn't served here" in raised.value.body["message"]


@pytest.mark.parametrize("texts", [[], [""], ["a", ""]], ids=repr)
def test_an_empty_text_is_rejected(server: AppServer, texts: list[str]) -> None:
    with pytest.raises(cohere.BadRequestError) as raised:
        embed(server, texts=texts)
    assert "is empty" in raised.value.body["message"]


def test_a_long_text_without_truncation_is_rejected(server: AppServer) -> None:
    with pytest.raises(cohere.BadRequestError) as raised:
        embed(server, texts=["a " * 99], truncate="NONE")
    assert "longer than the 32 tokens" in raised.value.body["message"]


def test_overload_is_a_rate_limit_error(overloaded: AppServer) -> None:
    with pytest.raises(cohere.TooManyRequestsError) as raised:
        embed(overloaded)
    assert raised.value.headers["retry-after"] == "7"
    assert "try later" in raised.value.body["message"]
