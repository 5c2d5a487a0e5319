"""Rerank and classification with the libraries of several APIs, unchanged except URL and key."""

import base64
import io
from typing import Any

import cohere
import litellm
import numpy as np
import pytest
import voyageai
from cohere.core.request_options import RequestOptions
from huggingface_hub import AsyncInferenceClient, InferenceClient
from langchain_core.documents import Document
from langchain_voyageai import VoyageAIRerank
from litellm import close_litellm_async_clients
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.postprocessor.tei_rerank import TextEmbeddingInference
from PIL import Image
from tei_client import HttpClient

from tests.clients.app_server import KEY
from tests.clients.kinds_server import (
    CLASSIFIER,
    DENSE,
    DOCUMENTS,
    IMAGE,
    QUERY,
    RERANKER,
    TOLERANCE,
    KindsServer,
)

NO_RETRIES = RequestOptions(max_retries=0)
TOP_N = 3


def check_ranking(
    kinds: KindsServer, indices: list[int], scores: list[float], n: int = TOP_N
) -> None:
    """Checks that a client returned the library's ranking."""
    assert indices == kinds.ranking[:n]
    np.testing.assert_allclose(scores, kinds.scores[kinds.ranking[:n]], atol=TOLERANCE)


def rows(results: list[Any]) -> tuple[list[int], list[float]]:
    return [row.index for row in results], [row.relevance_score for row in results]


REQUEST = {"query": QUERY, "documents": DOCUMENTS, "model": RERANKER, "top_n": TOP_N}


def test_cohere_v2(kinds: KindsServer) -> None:
    client = cohere.ClientV2(api_key=KEY, base_url=kinds.url)
    reply = client.rerank(**REQUEST, max_tokens_per_doc=4096)
    check_ranking(kinds, *rows(reply.results))
    assert reply.meta.billed_units.search_units == 1
    with pytest.raises(cohere.NotFoundError) as not_found:
        client.rerank(**{**REQUEST, "model": "rerank-v3.5"}, request_options=NO_RETRIES)
    assert "isn't served here" in not_found.value.body["message"]
    with pytest.raises(cohere.BadRequestError) as raised:
        client.rerank(**{**REQUEST, "model": DENSE}, request_options=NO_RETRIES)
    assert DENSE in raised.value.body["message"]
    with pytest.raises(cohere.BadRequestError) as raised:
        client.rerank(**{**REQUEST, "documents": ["a", ""]}, request_options=NO_RETRIES)
    assert "is empty" in raised.value.body["message"]


async def test_cohere_v2_async(kinds: KindsServer) -> None:
    async with cohere.AsyncClientV2(api_key=KEY, base_url=kinds.url) as client:
        check_ranking(kinds, *rows((await client.rerank(**REQUEST)).results))


def test_cohere_v1(kinds: KindsServer) -> None:
    client = cohere.Client(api_key=KEY, base_url=kinds.url)
    without_model = {name: value for name, value in REQUEST.items() if name != "model"}
    reply = client.rerank(**without_model, return_documents=True)
    check_ranking(kinds, *rows(reply.results))
    assert [row.document.text for row in reply.results] == [
        DOCUMENTS[i] for i in kinds.ranking[:TOP_N]
    ]
    titled = [{"title": text, "text": "x"} for text in DOCUMENTS]
    reply = client.rerank(**{**REQUEST, "documents": titled}, rank_fields=["title"])
    check_ranking(kinds, *rows(reply.results))


def test_cohere_images(kinds: KindsServer) -> None:
    buffer, image = io.BytesIO(), Image.new("RGB", (40, 30), "red")
    image.save(buffer, "PNG")
    uri = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    client = cohere.ClientV2(api_key=KEY, base_url=kinds.url)
    options: Any = {"model": IMAGE, "input_type": "image", "embedding_types": ["float"]}
    reply = client.embed(**options, images=[uri])
    expected = kinds.vectors(IMAGE, [image])
    np.testing.assert_allclose(reply.embeddings.float_, expected, atol=TOLERANCE)


def test_voyageai(kinds: KindsServer) -> None:
    client = voyageai.Client(api_key=KEY, base_url=f"{kinds.url}/v1")
    reply = client.rerank(QUERY, DOCUMENTS, model=RERANKER, top_k=TOP_N)
    check_ranking(kinds, *rows(reply.results))
    assert [row.document for row in reply.results] == [DOCUMENTS[i] for i in kinds.ranking[:TOP_N]]
    assert reply.total_tokens > 0
    with pytest.raises(voyageai.error.InvalidRequestError, match="longer"):
        client.rerank(QUERY, ["word " * 99], model=RERANKER, truncation=False)


async def test_voyageai_async(kinds: KindsServer) -> None:
    client = voyageai.AsyncClient(api_key=KEY, base_url=f"{kinds.url}/v1")
    reply = await client.rerank(QUERY, DOCUMENTS, model=RERANKER)
    check_ranking(kinds, *rows(reply.results), n=len(DOCUMENTS))


def compressor(kinds: KindsServer, **options: Any) -> VoyageAIRerank:
    url = f"{kinds.url}/v1"
    return VoyageAIRerank(api_key=KEY, base_url=url, model=RERANKER, top_k=TOP_N, **options)


def compressed(documents: Any) -> tuple[list[int], list[float]]:
    assert all(document.page_content == DOCUMENTS[document.metadata["i"]] for document in documents)
    return (
        [document.metadata["i"] for document in documents],
        [document.metadata["relevance_score"] for document in documents],
    )


LANGCHAIN_DOCUMENTS = [Document(text, metadata={"i": i}) for i, text in enumerate(DOCUMENTS)]


def test_langchain_document_compressor(kinds: KindsServer) -> None:
    documents = compressor(kinds).compress_documents(LANGCHAIN_DOCUMENTS, QUERY)
    check_ranking(kinds, *compressed(documents))


async def test_langchain_document_compressor_async(kinds: KindsServer) -> None:
    documents = await compressor(kinds).acompress_documents(LANGCHAIN_DOCUMENTS, QUERY)
    check_ranking(kinds, *compressed(documents))


def test_llama_index_postprocessor(kinds: KindsServer) -> None:
    nodes = [NodeWithScore(node=TextNode(id_=str(i), text=t)) for i, t in enumerate(DOCUMENTS)]
    postprocessor = TextEmbeddingInference(base_url=kinds.url, top_n=TOP_N)
    ranked = postprocessor.postprocess_nodes(nodes, query_str=QUERY)
    check_ranking(kinds, [int(node.node_id) for node in ranked], [node.score for node in ranked])


#: Provider → path of the base URL. `cohere` sends requests of v2, `huggingface` those of TEI.
PROVIDERS = {
    "cohere": "",
    "jina_ai": "/v1",
    "infinity": "",
    "huggingface": "",
    "hosted_vllm": "/v1",
    "voyage": "/v1",
}


def litellm_arguments(kinds: KindsServer, provider: str) -> dict[str, Any]:
    return {
        **REQUEST,
        "model": f"{provider}/{RERANKER}",
        "api_base": kinds.url + PROVIDERS[provider],
        "api_key": KEY,
    }


@pytest.fixture
def _without_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps `huggingface/` from asking the hub for the size of the model, which prices need."""
    monkeypatch.setattr(litellm.utils, "_get_max_position_embeddings", lambda model_name: 64)
    monkeypatch.setattr(litellm, "disable_hf_tokenizer_download", True)


def check_litellm(kinds: KindsServer, provider: str, reply: Any) -> None:
    # `huggingface` sends `top_n`, which TEI doesn't have, and drops the documents itself.
    results = reply.results[:TOP_N]
    check_ranking(
        kinds, [row["index"] for row in results], [row["relevance_score"] for row in results]
    )
    if provider != "huggingface":
        assert len(reply.results) == TOP_N


@pytest.mark.usefixtures("_without_hub")
@pytest.mark.parametrize("provider", PROVIDERS)
def test_litellm(kinds: KindsServer, provider: str) -> None:
    check_litellm(kinds, provider, litellm.rerank(**litellm_arguments(kinds, provider)))


@pytest.mark.usefixtures("_without_hub")
@pytest.mark.parametrize("provider", PROVIDERS)
async def test_litellm_async(kinds: KindsServer, provider: str) -> None:
    reply = await litellm.arerank(**litellm_arguments(kinds, provider))
    check_litellm(kinds, provider, reply)
    await close_litellm_async_clients()


def test_litellm_errors(kinds: KindsServer) -> None:
    arguments = litellm_arguments(kinds, "cohere")
    # `litellm` has no class of its own for statuses of a rerank request.
    with pytest.raises(litellm.APIConnectionError, match="isn't served here"):
        litellm.rerank(**{**arguments, "model": "cohere/rerank-v3.5"})


def test_tei_client(kinds: KindsServer, reranker: KindsServer) -> None:
    client = HttpClient(reranker.url)
    reply = client.rerank(QUERY, DOCUMENTS, return_text=True)
    check_ranking(
        kinds,
        [row.index for row in reply.ranks],
        [row.score for row in reply.ranks],
        n=len(DOCUMENTS),
    )
    assert [row.text for row in reply.ranks] == [DOCUMENTS[i] for i in kinds.ranking]
    raw = client.rerank(QUERY, DOCUMENTS, raw_scores=True).ranks
    sigmoid = [1 / (1 + np.exp(-row.score)) for row in raw]
    np.testing.assert_allclose(sigmoid, kinds.scores[kinds.ranking], atol=TOLERANCE)


async def test_tei_client_async(kinds: KindsServer, reranker: KindsServer) -> None:
    reply = await HttpClient(reranker.url).async_rerank(QUERY, DOCUMENTS)
    assert [row.index for row in reply.ranks] == kinds.ranking


def check_classes(kinds: KindsServer, texts: list[Any], replies: Any) -> None:
    for reply, expected in zip(replies, kinds.class_scores(texts), strict=True):
        scores = {row.label: row.score for row in reply.scores}
        np.testing.assert_allclose([scores["bad"], scores["good"]], expected, atol=TOLERANCE)
        assert [row.score for row in reply.scores] == sorted(scores.values(), reverse=True)


async def test_tei_client_classifies(kinds: KindsServer, classifier: KindsServer) -> None:
    client = HttpClient(classifier.url)
    assert client.info().server_model_id == CLASSIFIER
    check_classes(kinds, DOCUMENTS, client.classify(DOCUMENTS))
    pairs = [(QUERY, document) for document in DOCUMENTS]
    check_classes(kinds, pairs, await client.async_classify(pairs))


@pytest.mark.parametrize("path", ["", "/predict"])
async def test_huggingface_hub_classifies(
    kinds: KindsServer, classifier: KindsServer, path: str
) -> None:
    # As with text-embeddings-inference, the library returns the best label instead of a list.
    url = classifier.url + path
    bad, good = kinds.class_scores(DOCUMENTS[:1])[0]
    best: Any = InferenceClient(model=url).text_classification(DOCUMENTS[0])
    assert best.label == ("good" if good > bad else "bad")
    assert best.score == pytest.approx(max(bad, good), abs=TOLERANCE)
    async with AsyncInferenceClient(model=url) as client:
        assert await client.text_classification(DOCUMENTS[0]) == best
