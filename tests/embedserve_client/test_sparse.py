"""Sparse vectors with both clients, against a scripted server."""

from typing import Any

import numpy as np
import pytest

from embedserve_client import LocalModel, NetworkError, ParseError, SpaceMismatchError, SparseVector
from tests.embedserve_client.scripted_server import (
    SPACE,
    Action,
    Handler,
    ScriptedServer,
    disconnect,
    respond,
)

OTHER_SPACE = "f" * 16 + "-fp32"


def sparse(space: str = SPACE) -> Action:
    """Responds with the bytes of each text and their counts, as `POST /embed_sparse` does."""

    def action(handler: Handler) -> None:
        rows = [
            [{"index": i, "value": text.count(chr(i)) / 2} for i in sorted(set(text.encode()))]
            for text in handler.body["inputs"]
        ]
        handler.respond(200, [row[::-1] for row in rows], {"x-embedding-space": space})

    return action


def as_lists(vector: SparseVector) -> tuple[list[int], list[float]]:
    assert vector.indices.dtype == np.uint32
    assert vector.values.dtype == np.float32
    return vector.indices.tolist(), vector.values.tolist()


def test_vectors_are_in_order_of_texts_and_indices(
    make_client: Any, server: ScriptedServer
) -> None:
    server.script = [sparse() for _ in range(4)]
    client = make_client(server.url, batch_size=2)
    vectors = client.call("embed_sparse", ["aba", "", "c"])
    assert list(map(as_lists, vectors)) == [([97, 98], [1.0, 0.5]), ([], []), ([99], [0.5])]
    assert {headers["x-priority"] for headers in server.headers} == {"bulk"}
    assert as_lists(client.call("embed_sparse", "aa")) == ([97], [1.0])
    assert client.call("embed_sparse", []) == []
    assert server.paths == ["/embed_sparse"] * 3


def test_options_are_sent(make_client: Any, server: ScriptedServer) -> None:
    server.script = [sparse(), sparse()]
    client = make_client(server.url, model="m")
    client.call("embed_sparse", ["a"], truncation="error", use_cache=False, lane="bulk")
    client.call("embed_sparse", ["a"], input_type="query", model="n")
    first, second = server.bodies
    assert first == {"inputs": ["a"], "model": "m", "truncate": False, "use_cache": False}
    assert second == {
        "inputs": ["a"],
        "model": "n",
        "prompt_name": "query",
    }
    assert server.headers[0]["x-priority"] == "bulk"
    with pytest.raises(ValueError, match="truncation"):
        client.call("embed_sparse", ["a"], truncation="chunk")


def test_spaces_are_checked_apart_from_those_of_dense_vectors(
    make_client: Any, server: ScriptedServer
) -> None:
    client = make_client(server.url)
    assert client.embed(["a"]).source == "service"
    server.script = [sparse(OTHER_SPACE), sparse()]
    client.call("embed_sparse", ["a"])
    with pytest.raises(SpaceMismatchError):
        client.call("embed_sparse", ["a"])
    assert client.embed(["a"]).source == "service"


@pytest.mark.parametrize(
    "body",
    [
        {},
        b"[",
        [],
        [[], []],
        [[{"index": 1}]],
        [[{"index": "x", "value": 1}]],
        [[{"index": 2**40, "value": 1}]],
        b'[[{"index": 1, "value": NaN}]]',
    ],
)
def test_a_malformed_response_is_a_parse_error(
    make_client: Any, server: ScriptedServer, body: Any
) -> None:
    server.script = [respond(200, body)]
    with pytest.raises(ParseError):
        make_client(server.url).call("embed_sparse", ["a"])


def test_failures_are_retried_and_have_no_fallback(
    make_client: Any, server: ScriptedServer
) -> None:
    server.script = [disconnect, sparse()]
    assert len(make_client(server.url).call("embed_sparse", ["a"])) == 1
    client = make_client("http://127.0.0.1:9", fallback="local", local_model=LocalModel("stub"))
    with pytest.raises(NetworkError, match="can't compute sparse vectors instead"):
        client.call("embed_sparse", ["a"])
