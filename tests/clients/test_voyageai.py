"""The library `voyageai`."""

from typing import Any

import numpy as np
import pytest
import voyageai
from voyageai import error

from serve_app.service.embed import truncate_dimensions
from tests.clients.served import DIM, KEY, MODEL, TEXTS, Served, same, vectors, words


def embed(served: Served, texts: list[str] = TEXTS, **asked: Any) -> Any:
    client = voyageai.Client(api_key=KEY, base_url=f"{served.url}/v1")
    return client.embed(texts, **{"model": MODEL, **asked})


@pytest.mark.parametrize("purpose", [None, "query", "document"])
def test_embeds(served: Served, purpose: str | None) -> None:
    reply = embed(served, input_type=purpose)
    assert same(reply.embeddings, vectors(*TEXTS, prompt=purpose or ""))


def test_counts_tokens(served: Served) -> None:
    assert embed(served).total_tokens == words(*TEXTS)


async def test_embeds_async(served: Served) -> None:
    client = voyageai.AsyncClient(api_key=KEY, base_url=f"{served.url}/v1")
    reply = await client.embed(TEXTS, model=MODEL, input_type="query")
    assert same(reply.embeddings, vectors(*TEXTS, prompt="query"))


def test_cuts(served: Served) -> None:
    reply = embed(served, output_dimension=16, output_dtype="float")
    assert same(reply.embeddings, truncate_dimensions(vectors(*TEXTS), 16))


def test_gives_bits(served: Served) -> None:
    bits = np.packbits(vectors(*TEXTS) > 0, axis=1)
    assert np.array_equal(embed(served, output_dtype="ubinary").embeddings, bits)
    signed = embed(served, output_dtype="binary").embeddings
    assert np.array_equal(signed, bits.astype(int) - 128)


@pytest.mark.parametrize(("output", "low", "high"), [("int8", -128, 127), ("uint8", 0, 255)])
def test_gives_bytes(served: Served, output: str, low: int, high: int) -> None:
    given = np.array(embed(served, output_dtype=output).embeddings)
    assert given.shape == (len(TEXTS), DIM)
    assert np.issubdtype(given.dtype, np.integer)
    assert low <= given.min() < given.max() <= high
    assert np.array_equal(given[0], given[3])  # as the texts


def test_no_text(served: Served) -> None:
    with pytest.raises(error.InvalidRequestError, match="Text 0 is empty"):
        embed(served, [""])


def test_an_unknown_model(served: Served) -> None:
    with pytest.raises(error.APIError, match="isn't served here") as told:
        embed(served, model="voyage-4")
    assert told.value.http_status == 404


def test_a_text_that_is_too_long_and_may_not_be_cut(served: Served) -> None:
    with pytest.raises(error.InvalidRequestError, match="longer than the 32 tokens"):
        embed(served, ["a " * 99], truncation=False)


def test_more_load_than_fits(overloaded: Served) -> None:
    with pytest.raises(error.RateLimitError, match="try later") as told:
        embed(overloaded)
    assert told.value.headers["retry-after"] == "7"
