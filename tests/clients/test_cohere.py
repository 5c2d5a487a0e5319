"""The library `cohere`."""

import base64
from typing import Any

import cohere
import numpy as np
import pytest
from cohere.core.request_options import RequestOptions

from serve_app.service.embed import truncate_dimensions
from tests.clients.served import DIM, KEY, MODEL, TEXTS, Served, same, vectors, words

ONCE = RequestOptions(max_retries=0)


def embed(served: Served, **asked: Any) -> Any:
    client = cohere.ClientV2(api_key=KEY, base_url=served.url)
    defaults = {"model": MODEL, "texts": TEXTS, "input_type": "search_document"}
    return client.embed(**{**defaults, "request_options": ONCE, **asked})


@pytest.mark.parametrize(
    ("input_type", "prompt"),
    [("search_document", "document"), ("search_query", "query"), ("clustering", "")],
)
def test_embeds(served: Served, input_type: str, prompt: str) -> None:
    reply = embed(served, input_type=input_type, embedding_types=["float"])
    assert same(reply.embeddings.float_, vectors(*TEXTS, prompt=prompt))
    assert reply.texts == TEXTS
    assert reply.response_type == "embeddings_by_type"
    assert reply.meta.billed_units.input_tokens == words(*TEXTS, prompt=prompt)


async def test_embeds_async(served: Served) -> None:
    async with cohere.AsyncClientV2(api_key=KEY, base_url=served.url) as client:
        reply = await client.embed(
            model=MODEL, texts=TEXTS, input_type="search_query", embedding_types=["float"]
        )
    assert same(reply.embeddings.float_, vectors(*TEXTS, prompt="query"))


def test_embeds_without_a_word_about_types(served: Served) -> None:
    assert same(embed(served).embeddings.float_, vectors(*TEXTS, prompt="document"))


def test_embeds_more_texts_than_cohere_itself_takes(served: Served) -> None:
    texts = [f"text number {i}" for i in range(200)]
    reply = embed(served, texts=texts, embedding_types=["float", "ubinary"])
    expected = vectors(*texts, prompt="document")
    assert same(reply.embeddings.float_, expected)
    assert np.array_equal(reply.embeddings.ubinary, np.packbits(expected > 0, axis=1))


def test_gives_several_types_at_once(served: Served) -> None:
    reply = embed(served, embedding_types=["float", "base64", "binary", "ubinary"])
    expected = vectors(*TEXTS, prompt="document")
    raw = [np.frombuffer(base64.b64decode(text), "<f4") for text in reply.embeddings.base64]
    assert same(raw, expected)
    assert same(reply.embeddings.float_, expected)
    bits = np.packbits(expected > 0, axis=1)
    assert np.array_equal(reply.embeddings.ubinary, bits)
    assert np.array_equal(reply.embeddings.binary, bits.astype(int) - 128)
    assert reply.embeddings.int8 is None


def test_gives_bytes(served: Served) -> None:
    reply = embed(served, embedding_types=["float", "int8", "uint8"]).embeddings
    signed, unsigned = np.array(reply.int8), np.array(reply.uint8)
    assert signed.shape == unsigned.shape == (len(TEXTS), DIM)
    assert -128 <= signed.min() < 0 < signed.max() <= 127
    assert 0 <= unsigned.min() < 128 < unsigned.max() <= 255
    assert reply.int8[0] == reply.int8[3] != reply.int8[1]  # as the texts
    assert same(reply.float_, vectors(*TEXTS, prompt="document"))


def test_takes_objects_and_cuts(served: Served) -> None:
    inputs = [{"content": [{"type": "text", "text": text}]} for text in TEXTS]
    reply = embed(served, texts=None, inputs=inputs, output_dimension=16)
    expected = truncate_dimensions(vectors(*TEXTS, prompt="document"), 16)
    assert same(reply.embeddings.float_, expected)


def test_an_unknown_model(served: Served) -> None:
    with pytest.raises(cohere.NotFoundError) as told:
        embed(served, model="embed-v4.0")
    assert "isn't served here" in told.value.body["message"]


@pytest.mark.parametrize("texts", [[], [""], ["a", ""]], ids=repr)
def test_no_text(served: Served, texts: list[str]) -> None:
    with pytest.raises(cohere.BadRequestError) as told:
        embed(served, texts=texts)
    assert "is empty" in told.value.body["message"]


def test_a_text_that_is_too_long_and_may_not_be_cut(served: Served) -> None:
    with pytest.raises(cohere.BadRequestError) as told:
        embed(served, texts=["a " * 99], truncate="NONE")
    assert "longer than the 32 tokens" in told.value.body["message"]


def test_more_load_than_fits(overloaded: Served) -> None:
    with pytest.raises(cohere.TooManyRequestsError) as told:
        embed(overloaded)
    assert told.value.headers["retry-after"] == "7"
    assert "try later" in told.value.body["message"]
