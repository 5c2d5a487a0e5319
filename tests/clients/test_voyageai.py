"""The client library `voyageai`."""

from typing import Any

import numpy as np
import pytest
import voyageai
from voyageai import error

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


def embed(server: AppServer, texts: list[str] = TEXTS, **options: Any) -> Any:
    client = voyageai.Client(api_key=KEY, base_url=f"{server.url}/v1")
    return client.embed(texts, **{"model": MODEL, **options})


@pytest.mark.parametrize("input_type", [None, "query", "document"])
def test_embeds(server: AppServer, input_type: str | None) -> None:
    reply = embed(server, input_type=input_type)
    assert equal_vectors(reply.embeddings, expected_vectors(*TEXTS, prompt=input_type or ""))


def test_counts_tokens(server: AppServer) -> None:
    assert embed(server).total_tokens == token_count(*TEXTS)


async def test_embeds_async(server: AppServer) -> None:
    client = voyageai.AsyncClient(api_key=KEY, base_url=f"{server.url}/v1")
    reply = await client.embed(TEXTS, model=MODEL, input_type="query")
    assert equal_vectors(reply.embeddings, expected_vectors(*TEXTS, prompt="query"))


def test_reduced_dimensions(server: AppServer) -> None:
    reply = embed(server, output_dimension=16, output_dtype="float")
    assert equal_vectors(reply.embeddings, truncate_dimensions(expected_vectors(*TEXTS), 16))


def test_bit_types(server: AppServer) -> None:
    bits = np.packbits(expected_vectors(*TEXTS) > 0, axis=1)
    assert np.array_equal(embed(server, output_dtype="ubinary").embeddings, bits)
    signed = embed(server, output_dtype="binary").embeddings
    assert np.array_equal(signed, bits.astype(int) - 128)


@pytest.mark.parametrize(("output_dtype", "low", "high"), [("int8", -128, 127), ("uint8", 0, 255)])
def test_byte_types(server: AppServer, output_dtype: str, low: int, high: int) -> None:
    codes = np.array(embed(server, output_dtype=output_dtype).embeddings)
    assert codes.shape == (len(TEXTS), DIM)
    assert np.issubdtype(codes.dtype, np.integer)
    assert low <= codes.min() < codes.max() <= high
    assert np.array_equal(codes[0], codes[3])  # TEXTS[0] == TEXTS[3]


def test_an_empty_text_is_rejected(server: AppServer) -> None:
    with pytest.raises(error.InvalidRequestError, match="Text 0 is empty"):
        embed(server, [""])


def test_an_unknown_model_is_rejected(server: AppServer) -> None:
    with pytest.raises(error.APIError, match="isn't served here") as raised:
        embed(server, model="voyage-4")
    assert raised.value.http_status == 404


def test_a_long_text_without_truncation_is_rejected(server: AppServer) -> None:
    with pytest.raises(error.InvalidRequestError, match="longer than the 32 tokens"):
        embed(server, ["a " * 99], truncation=False)


def test_overload_is_a_rate_limit_error(overloaded: AppServer) -> None:
    with pytest.raises(error.RateLimitError, match="try later") as raised:
        embed(overloaded)
    assert raised.value.headers["retry-after"] == "7"
