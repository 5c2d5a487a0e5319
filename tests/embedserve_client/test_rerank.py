"""Reranking with both clients, against a scripted server."""

from typing import Any

import pytest

from embedserve_client import (
    HTTPError,
    LocalModel,
    LocalModelError,
    NetworkError,
    ParseError,
    RequestTimeoutError,
    RerankResult,
    ServerError,
)
from embedserve_client.fallback import LocalOnly
from tests.embedserve_client.scripted_server import (
    Action,
    Handler,
    ScriptedServer,
    disconnect,
    error,
    no_response,
    respond,
)

DOCUMENTS = ["bb", "a", "dddd", "ccc", "eeee"]


def scores() -> Action:
    """Scores documents by their length, as `POST /v1/rerank` does."""

    def action(handler: Handler) -> None:
        documents = handler.body["documents"]
        order = sorted(range(len(documents)), key=lambda i: -len(documents[i]))
        results = [{"index": i, "relevance_score": len(documents[i]) / 10} for i in order]
        handler.respond(200, {"results": results[: handler.body.get("top_n")]})

    return action


def test_documents_are_ranked_by_score(make_client: Any, server: ScriptedServer) -> None:
    server.script = [scores()]
    results = make_client(server.url).call("rerank", "query", DOCUMENTS)
    assert results == [
        RerankResult(2, 0.4, "dddd"),
        RerankResult(4, 0.4, "eeee"),
        RerankResult(3, 0.3, "ccc"),
        RerankResult(0, 0.2, "bb"),
        RerankResult(1, 0.1, "a"),
    ]
    assert server.paths == ["/v1/rerank"]
    assert server.bodies == [{"query": "query", "documents": DOCUMENTS}]


def test_options_are_sent(make_client: Any, server: ScriptedServer) -> None:
    server.script = [scores(), scores()]
    client = make_client(server.url, model="m", api_key="secret")
    assert len(client.call("rerank", "q", DOCUMENTS, 2, lane="bulk", use_cache=False)) == 2
    client.call("rerank", "q", DOCUMENTS, model="n")
    first, second = server.bodies
    assert first == {
        "query": "q",
        "documents": DOCUMENTS,
        "model": "m",
        "top_n": 2,
        "use_cache": False,
    }
    assert second["model"] == "n"
    assert server.headers[0]["authorization"] == "Bearer secret"
    assert server.headers[0]["x-priority"] == "bulk"


@pytest.mark.parametrize("top_n", [None, 1, 3, 99])
def test_long_lists_are_split_and_merged(
    make_client: Any, server: ScriptedServer, top_n: int | None
) -> None:
    server.script = [scores() for _ in range(3)]
    results = make_client(server.url, batch_size=2).call("rerank", "q", DOCUMENTS, top_n)
    assert [result.index for result in results] == [2, 4, 3, 0, 1][:top_n]
    assert [result.document for result in results] == [DOCUMENTS[r.index] for r in results]
    assert sorted(len(body["documents"]) for body in server.bodies) == [1, 2, 2]
    assert {headers["x-priority"] for headers in server.headers} == {"bulk"}


def test_no_documents_need_no_request(make_client: Any, server: ScriptedServer) -> None:
    assert make_client(server.url).call("rerank", "q", []) == []
    assert server.paths == []


@pytest.mark.parametrize(
    ("documents", "top_n", "match"), [("abc", None, "one string"), (["a"], 0, "top_n")]
)
def test_invalid_arguments_are_rejected(
    make_client: Any, server: ScriptedServer, documents: Any, top_n: Any, match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        make_client(server.url).call("rerank", "q", documents, top_n)
    with pytest.raises(TypeError, match="no option 'dimensions'"):
        make_client(server.url).call("rerank", "q", ["a"], dimensions=3)
    assert server.paths == []


@pytest.mark.parametrize("fault", [disconnect, error(500), error(429)])
def test_transient_failures_are_retried(
    make_client: Any, server: ScriptedServer, fault: Action
) -> None:
    server.script = [fault, fault, scores()]
    assert len(make_client(server.url).call("rerank", "q", DOCUMENTS)) == 5
    assert len(server.paths) == 3


def test_a_rejected_request_names_its_documents(make_client: Any, server: ScriptedServer) -> None:
    server.script = [scores(), error(400, "Text 1 is empty.")]
    client = make_client(server.url, batch_size=2, concurrency=1)
    with pytest.raises(HTTPError, match=r"relative to the batch of documents 2-3"):
        client.call("rerank", "q", DOCUMENTS)


def test_the_timeout_of_a_call_is_that_of_its_option(
    make_client: Any, server: ScriptedServer
) -> None:
    server.script = [no_response]
    with pytest.raises(RequestTimeoutError):
        make_client(server.url).call("rerank", "q", DOCUMENTS, timeout_s=0.2)
    assert not server.ran_to_end


def results(*pairs: tuple[Any, Any]) -> dict[str, Any]:
    return {"results": [{"index": i, "relevance_score": score} for i, score in pairs]}


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        b"{",
        {"results": [{"index": 0}]},
        results((0, 1.0)),
        results((0, 1.0), (0, 0.5)),
        results((0, 1.0), (2, 0.5)),
        results((0, 1.0), (-1, 0.5)),
        results((0, 1.0), ("1", 0.5)),
        results((0, 1.0), (1, "high")),
        b'{"results": [{"index": 0, "relevance_score": NaN}, {"index": 1, "relevance_score": 1}]}',
    ],
)
def test_a_malformed_response_is_a_parse_error(
    make_client: Any, server: ScriptedServer, body: Any
) -> None:
    server.script = [respond(200, body)]
    with pytest.raises(ParseError):
        make_client(server.url).call("rerank", "q", ["a", "b"])


def test_a_local_model_does_not_replace_a_reranker(
    make_client: Any, server: ScriptedServer
) -> None:
    model = LocalModel("stub")
    client = make_client("http://127.0.0.1:9", fallback="local", local_model=model)
    with pytest.raises(NetworkError, match=r"LocalModel\('stub'\) can't rerank instead"):
        client.call("rerank", "q", DOCUMENTS)
    client = make_client(server.url, fallback=LocalOnly(model))
    with pytest.raises(LocalModelError, match="can't rerank"):
        client.call("rerank", "q", DOCUMENTS)
    assert server.paths == []


def test_an_ill_reranker_does_not_divert_embeddings(
    make_client: Any, server: ScriptedServer
) -> None:
    client = make_client(server.url, fallback="local", local_model=LocalModel("stub"))
    server.script = [error(503)] * 4
    with pytest.raises(ServerError):
        client.call("rerank", "q", DOCUMENTS)
    assert client.embed(["a"]).source == "service"
