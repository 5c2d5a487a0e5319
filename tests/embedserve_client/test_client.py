"""Both clients, against a server that fails on purpose."""

import copy
import logging
import multiprocessing
import pickle
import threading
from typing import Any

import numpy as np
import pytest

from embedserve_client import (
    Client,
    EmbedError,
    HTTPError,
    NetworkError,
    Overloaded,
    ParseError,
    Retry,
    ServerError,
    Space,
    SpaceMismatch,
    Timeout,
    Vectors,
)
from tests.embedserve_client import scripted
from tests.embedserve_client.scripted import (
    DIM,
    SPACE,
    Scripted,
    answer,
    drip,
    hang_up,
    refuse,
    silence,
    vector,
    vectors,
)

TEXTS = [f"{i} text" for i in range(50)]


def expected(texts: list[str]) -> Any:
    return np.array([vector(text) for text in texts], dtype=np.float32)


def test_vectors_come_in_order_with_what_is_known_of_them(made: Any, server: Scripted) -> None:
    found = made(server.url).embed(TEXTS)
    assert isinstance(found, Vectors)
    assert found.dtype == np.float32
    assert np.array_equal(found, expected(TEXTS))
    assert found.space == Space.parse(SPACE)
    assert found.source == "service"
    assert (found.about.model, found.about.tokens) == ("m", 7)


def test_one_text_has_one_vector(made: Any, server: Scripted) -> None:
    client = made(server.url)
    assert client.embed("abc").shape == (DIM,)
    assert client.call("embed_query", "abc").shape == (DIM,)
    assert client.call("embed_documents", ["abc"]).shape == (1, DIM)
    assert [body.get("input_type") for body in server.bodies] == [None, "query", "document"]


def test_long_lists_are_split_and_stay_in_order(made: Any, server: Scripted) -> None:
    marked = {"x-truncated-inputs": "1,3-4"}
    server.script = [vectors(**marked) for _ in range(8)]
    found = made(server.url, batch_size=7, concurrency=3).embed(TEXTS)
    assert np.array_equal(found, expected(TEXTS))
    assert sorted(len(body["input"]) for body in server.bodies) == [1, *[7] * 7]
    assert found.about.tokens == 8 * 7
    assert found.about.truncated[:6] == (1, 3, 4, 8, 10, 11)
    # The rest of a long list is no query, though it is as short as one.
    assert {headers["x-priority"] for headers in server.headers} == {"bulk"}


def test_as_many_requests_are_under_way_as_asked_for(made: Any, server: Scripted) -> None:
    lock, three = threading.Lock(), threading.Barrier(3, timeout=10)
    now, most = 0, 0

    def count(handler: scripted.Handler) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        three.wait()  # which breaks when no more than two come
        with lock:
            now -= 1
        vectors()(handler)

    server.script = [count] * 21
    made(server.url, batch_size=1, concurrency=3).embed(TEXTS[:21])
    assert most == 3


def test_options_reach_the_service(made: Any, server: Scripted) -> None:
    made(server.url, model="m", api_key="secret").embed(
        ["a"], dimensions=2, lane="interactive", overflow="error", use_cache=False
    )
    made(server.url).embed(["a"], overflow="chunk", lane="bulk", model="n", input_type="query")
    first, second = server.bodies
    assert first == {
        "input": ["a"],
        "encoding_format": "base64",
        "model": "m",
        "dimensions": 2,
        "truncate": "NONE",
        "use_cache": False,
    }
    assert (second["chunk"], second["model"], second["input_type"]) == (True, "n", "query")
    assert server.headers[0]["authorization"] == "Bearer secret"
    assert [headers["x-priority"] for headers in server.headers] == ["interactive", "bulk"]


@pytest.mark.parametrize("fault", [hang_up, refuse(500), refuse(503), refuse(429), refuse(502)])
def test_what_may_pass_is_tried_again(made: Any, server: Scripted, fault: Any) -> None:
    server.script = [fault, fault]
    assert np.array_equal(made(server.url).embed(["abc"]), expected(["abc"]))
    assert server.posts == 3


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (refuse(500), ServerError),
        (refuse(429), Overloaded),
        (hang_up, NetworkError),
    ],
)
def test_what_does_not_pass_is_raised(
    made: Any, server: Scripted, fault: Any, kind: type[EmbedError]
) -> None:
    server.script = [fault] * 9
    with pytest.raises(kind):
        made(server.url).embed(["abc"])
    assert server.posts == 4


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_what_would_only_fail_again_is_not_tried(made: Any, server: Scripted, status: int) -> None:
    server.script = [refuse(status, "You did it wrong.", x_request_id="r1")]
    with pytest.raises(HTTPError, match="You did it wrong") as raised:
        made(server.url).embed(["abc"])
    assert type(raised.value) is HTTPError
    told = raised.value
    assert (told.status, told.server_code, told.param, told.request_id) == (status, "c", "p", "r1")
    assert server.posts == 1


def test_a_busy_service_says_when_to_come_back(made: Any, server: Scripted) -> None:
    server.script = [refuse(429, retry_after="3600")]
    with pytest.raises(Overloaded) as raised:  # at once: an hour is longer than the call may take
        made(server.url, retry=Retry()).embed(["abc"])
    assert raised.value.retry_after_s == 3600
    assert server.posts == 1


def test_a_short_wait_is_waited(made: Any, server: Scripted) -> None:
    server.script = [refuse(429, retry_after="1"), refuse(503)]
    assert len(made(server.url, retry=Retry(first_wait_s=0.01)).embed(["abc"])) == 1


@pytest.mark.parametrize("fault", [drip, silence], ids=["drip", "silence"])
def test_a_call_ends_in_time_whatever_the_server_does(
    made: Any, server: Scripted, fault: Any
) -> None:
    server.script = [fault] * 9
    with pytest.raises(Timeout):
        made(server.url, timeout_s=0.4).embed(["abc"])
    assert server.posts == 1
    assert not server.outlasted


def test_nobody_there(made: Any) -> None:
    with pytest.raises(NetworkError, match=r"Nobody answers at 127\.0\.0\.1:9"):
        made("http://127.0.0.1:9").embed(["abc"])


FLOATS = {"data": [{"index": 1, "embedding": [1.0, 2.0]}, {"index": 0, "embedding": [3.0, 4.0]}]}
BASE64 = {"data": [{"index": 0, "embedding": "AACAPwAAAEA="}], "model": "other"}
RAW = {"content-type": "application/octet-stream"}


def test_another_server_of_the_dialect_is_understood(made: Any, server: Scripted) -> None:
    server.script = [answer(200, FLOATS), answer(200, BASE64)]
    client = made(server.url)
    assert client.embed(["a", "b"]).tolist() == [[3.0, 4.0], [1.0, 2.0]]
    found = client.embed(["a"])
    assert found.tolist() == [[1.0, 2.0]]
    assert (found.space, found.about.model) == (None, "other")


@pytest.mark.parametrize(
    "wrong",
    [
        answer(200, b"<html>"),
        answer(200, []),
        answer(200, {"data": []}),
        answer(200, FLOATS),
        answer(200, {"data": [{"index": 5, "embedding": [1.0]}]}),
        answer(200, {"data": [{"index": 0, "embedding": None}]}),
        answer(200, {"data": [{"index": 0, "embedding": "!"}]}),
        answer(200, {"data": [{"index": 0, "embedding": 1.0}]}),
        answer(200, b"\0" * 15, {**RAW, "x-embedding-shape": "1,4"}),
        answer(200, b"\0" * 32, {**RAW, "x-embedding-shape": "2,4"}),
        answer(200, b"\0" * 16, RAW),
        answer(200, b"\0\0\xc0\x7f", {**RAW, "x-embedding-shape": "1,1"}),
        vectors(space="nonsense"),
        vectors(**{"x-truncated-inputs": "all"}),
    ],
)
def test_an_answer_without_the_vectors_is_an_error(made: Any, server: Scripted, wrong: Any) -> None:
    server.script = [wrong]
    with pytest.raises(ParseError):
        made(server.url).embed(["a"])


def test_a_body_that_is_cut_short_is_asked_for_again(made: Any, server: Scripted) -> None:
    whole = b"\0" * 16
    server.script = [answer(200, whole, {**RAW, "x-embedding-shape": "1,4"}, cut=5)]
    assert np.array_equal(made(server.url).embed(["abc"]), expected(["abc"]))
    assert server.posts == 2


def test_two_spaces_do_not_meet(made: Any, server: Scripted) -> None:
    family = SPACE.partition("-")[0]
    server.script = [vectors(), vectors(f"{family}-bf16"), vectors("f" * 16 + "-fp32"), vectors()]
    client = made(server.url)
    assert len(client.embed(["a"])) == len(client.embed(["a"])) == 1
    with pytest.raises(SpaceMismatch, match="can't be compared"):
        client.embed(["a"])
    assert len(client.embed(["a"])) == 1
    server.script = [vectors(f"{family}-int8"), vectors(None)]
    for _ in range(2):
        with pytest.raises(SpaceMismatch):
            client.embed(["a"])


def test_they_do_where_they_are_told_to(made: Any, server: Scripted) -> None:
    server.script = [vectors(), vectors("f" * 16 + "-fp32")]
    client = made(server.url, allow_mixed_spaces=True)
    assert len(client.embed(["a"])) == len(client.embed(["a"])) == 1


def test_a_space_can_be_asked_for(made: Any, server: Scripted) -> None:
    with pytest.raises(SpaceMismatch):
        made(server.url, space="f" * 16 + "-fp32").embed(["a"])


def test_the_first_failure_of_a_long_list_ends_it(made: Any, server: Scripted) -> None:
    server.script = [vectors(), refuse(400, "Text 1 is empty.")]
    with pytest.raises(HTTPError, match=r"Text 1 is empty\. Of texts 5 to 9"):
        made(server.url, batch_size=5, concurrency=1).embed(TEXTS)
    assert server.posts == 2


def test_health_is_told_also_when_it_is_bad(made: Any, server: Scripted) -> None:
    client = made(server.url)
    assert client.call("health") == {"status": "ok"}
    assert client.call("is_healthy")
    server.healthy = False
    assert client.call("health") == {"status": "unavailable"}
    assert not client.call("is_healthy")
    with pytest.raises(HTTPError, match="Nothing is here"):
        client.call("info")


def test_a_key_is_shown_to_the_service_only(
    made: Any, server: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    client = made(server.url, api_key="s3cret-key")
    server.script = [refuse(401, "Unknown key.")]
    with pytest.raises(HTTPError) as raised:
        client.embed(["a"])
    shown = f"{raised.value!r} {raised.value.__dict__} {client.client!r} {caplog.text}"
    assert "s3cret" not in shown


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://x", "http://"])
def test_what_is_no_address_is_refused(made: Any, url: str) -> None:
    with pytest.raises(ValueError, match="write http://host:port"):
        made(url)


def test_settings_that_cannot_be_are_refused(made: Any) -> None:
    for wrong in ({"timeout_s": 0}, {"batch_size": 0}, {"concurrency": 0}, {"fallback": "cloud"}):
        with pytest.raises(ValueError):  # noqa: PT011 - which is told by its words
            made("http://127.0.0.1:9", **wrong)


def test_the_environment_says_where_and_with_which_key(
    made: Any, server: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDSERVE_URL", server.url)
    monkeypatch.setenv("EMBEDSERVE_API_KEY", "k")
    assert len(made().embed(["a"])) == 1
    assert server.headers[0]["authorization"] == "Bearer k"


def test_encode_stands_in_for_sentence_transformers(server: Scripted) -> None:
    with Client(server.url) as client:
        found = client.encode(["abc"], prompt_name="query", batch_size=8, show_progress_bar=True)
        assert np.array_equal(found, expected(["abc"]))
        assert client.encode("abc").shape == (DIM,)
    assert server.bodies[0]["input_type"] == "query"


def test_many_threads_share_a_client(server: Scripted) -> None:
    failures: list[BaseException] = []
    with Client(server.url, batch_size=3) as client:

        def work(number: int) -> None:
            texts = [f"{number} {i}" for i in range(10)]
            try:
                assert np.array_equal(client.embed(texts), expected(texts))
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []


def _in_child(client: Client, found: Any) -> None:
    found.put(client.embed(["abc", "de"]).tolist())


def test_a_fork_has_connections_of_its_own(server: Scripted) -> None:
    context = multiprocessing.get_context("fork")
    with Client(server.url) as client:
        client.embed(["a"])  # a connection is open now
        found = context.Queue()
        children = [context.Process(target=_in_child, args=(client, found)) for _ in range(3)]
        for child in children:
            child.start()
        for _ in range(10):
            assert np.array_equal(client.embed(["abc"]), expected(["abc"]))
        for child in children:
            assert found.get(timeout=30) == expected(["abc", "de"]).tolist()
            child.join()


def test_errors_cross_processes() -> None:
    told = Overloaded("busy", 429, server_code="c", param="p", request_id="r")
    told.retry_after_s = 3.0
    for error in (told, Timeout("late"), SpaceMismatch("no")):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert (str(again), again.__dict__) == (str(error), error.__dict__)


def test_what_is_computed_from_vectors_is_no_vector_any_more() -> None:
    from embedserve_client.vectors import About

    found = Vectors([[1.0, 2.0], [3.0, 4.0]], About(Space.parse(SPACE), "m", "service"))
    for part in (found[0], found[1:], found.copy(), found.T):
        assert isinstance(part, Vectors)
        assert part.space == found.space
    again = pickle.loads(pickle.dumps(found))
    assert np.array_equal(again, found)
    assert again.about == found.about
    assert copy.deepcopy(found).about == found.about
    for computed in (found @ found.T, found + 1, found.sum(axis=0), found == found):
        assert type(computed) is np.ndarray
    assert type(found.sum()) is np.float32
