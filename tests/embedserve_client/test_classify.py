"""Classification with both clients, against a scripted server."""

from typing import Any

import pytest

from embedserve_client import (
    HTTPError,
    LabelScore,
    LocalModel,
    LocalModelError,
    NetworkError,
    ParseError,
    RequestTimeoutError,
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

TEXTS = ["bb", "a", "dddd", "ccc", "eeee"]


def labels() -> Action:
    """Scores each text by its length, as `POST /predict` does, in the wrong order."""

    def action(handler: Handler) -> None:
        rows = []
        for (text,) in handler.body["inputs"]:
            long = len(text) / 10
            rows.append([{"score": long, "label": "long"}, {"score": 1 - long, "label": "short"}])
        handler.respond(200, rows)

    return action


def expected(text: str) -> list[LabelScore]:
    long = len(text) / 10
    return [LabelScore("short", 1 - long), LabelScore("long", long)]


def test_labels_of_each_text_are_sorted_by_score(make_client: Any, server: ScriptedServer) -> None:
    server.script = [labels(), labels()]
    client = make_client(server.url)
    assert client.call("classify", TEXTS) == [expected(text) for text in TEXTS]
    assert [item.label for item in client.call("classify", "eight888")] == ["long", "short"]
    assert server.paths == ["/predict", "/predict"]
    assert server.bodies == [{"inputs": [[text] for text in TEXTS]}, {"inputs": [["eight888"]]}]


def test_options_are_sent(make_client: Any, server: ScriptedServer) -> None:
    server.script = [labels(), labels()]
    client = make_client(server.url, model="m", api_key="secret")
    client.call("classify", ["a"], lane="bulk", use_cache=False)
    client.call("classify", ["a"], model="n")
    first, second = server.bodies
    assert first == {"inputs": [["a"]], "model": "m", "use_cache": False}
    assert second == {"inputs": [["a"]], "model": "n"}
    assert server.headers[0]["authorization"] == "Bearer secret"
    assert server.headers[0]["x-priority"] == "bulk"


def test_long_lists_are_split_and_joined(make_client: Any, server: ScriptedServer) -> None:
    server.script = [labels() for _ in range(3)]
    rows = make_client(server.url, batch_size=2).call("classify", TEXTS)
    assert rows == [expected(text) for text in TEXTS]
    assert sorted(len(body["inputs"]) for body in server.bodies) == [1, 2, 2]
    assert {headers["x-priority"] for headers in server.headers} == {"bulk"}


def test_no_texts_need_no_request(make_client: Any, server: ScriptedServer) -> None:
    assert make_client(server.url).call("classify", []) == []
    assert server.paths == []


def test_an_unknown_option_is_rejected(make_client: Any, server: ScriptedServer) -> None:
    with pytest.raises(TypeError, match="no option 'top_n'"):
        make_client(server.url).call("classify", ["a"], top_n=3)
    assert server.paths == []


@pytest.mark.parametrize("fault", [disconnect, error(500), error(429)])
def test_transient_failures_are_retried(
    make_client: Any, server: ScriptedServer, fault: Action
) -> None:
    server.script = [fault, fault, labels()]
    assert len(make_client(server.url).call("classify", TEXTS)) == 5
    assert len(server.paths) == 3


def test_a_rejected_request_names_its_texts(make_client: Any, server: ScriptedServer) -> None:
    server.script = [labels(), error(400, "Text 1 is empty.")]
    client = make_client(server.url, batch_size=2, concurrency=1)
    with pytest.raises(HTTPError, match=r"relative to the batch of texts 2-3"):
        client.call("classify", TEXTS)


def test_the_timeout_of_a_call_is_that_of_its_option(
    make_client: Any, server: ScriptedServer
) -> None:
    server.script = [no_response]
    with pytest.raises(RequestTimeoutError):
        make_client(server.url).call("classify", TEXTS, timeout_s=0.2)
    assert not server.ran_to_end


LABEL = {"score": 0.5, "label": "a"}


@pytest.mark.parametrize(
    "body",
    [
        {},
        b"{",
        [[LABEL]],
        [[LABEL], []],
        [[LABEL], LABEL],
        [[LABEL], [{"score": 0.5}]],
        [[LABEL], [{"label": "a"}]],
        [[LABEL], [{"score": "high", "label": "a"}]],
        [[LABEL], [{"score": 0.5, "label": None}]],
        b'[[{"score": NaN, "label": "a"}], [{"score": 1, "label": "a"}]]',
    ],
)
def test_a_malformed_response_is_a_parse_error(
    make_client: Any, server: ScriptedServer, body: Any
) -> None:
    server.script = [respond(200, body)]
    with pytest.raises(ParseError):
        make_client(server.url).call("classify", ["a", "b"])


def test_a_local_model_does_not_replace_a_classifier(
    make_client: Any, server: ScriptedServer
) -> None:
    model = LocalModel("stub")
    client = make_client("http://127.0.0.1:9", fallback="local", local_model=model)
    with pytest.raises(NetworkError, match=r"LocalModel\('stub'\) can't classify instead"):
        client.call("classify", TEXTS)
    client = make_client(server.url, fallback=LocalOnly(model))
    with pytest.raises(LocalModelError, match="can't classify"):
        client.call("classify", TEXTS)
    assert server.paths == []


def test_an_ill_classifier_does_not_divert_embeddings(
    make_client: Any, server: ScriptedServer
) -> None:
    client = make_client(server.url, fallback="local", local_model=LocalModel("stub"))
    server.script = [error(503)] * 4
    with pytest.raises(ServerError):
        client.call("classify", TEXTS)
    assert client.embed(["a"]).source == "service"
