"""Both clients, against a scripted server."""

import asyncio
import copy
import logging
import multiprocessing
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from embedserve_client import (
    AsyncClient,
    Client,
    EmbedError,
    HTTPError,
    NetworkError,
    ParseError,
    RateLimitError,
    RequestTimeoutError,
    ServerError,
    Space,
    SpaceConflictError,
    SpaceMismatchError,
    Vectors,
)
from embedserve_client.vectors import VectorInfo
from tests.embedserve_client.scripted_server import (
    DIM,
    SPACE,
    Handler,
    ScriptedServer,
    disconnect,
    error,
    no_response,
    respond,
    slow_body,
    vector,
    vectors,
)

TEXTS = [f"{i} text" for i in range(50)]


def expected(texts: list[str]) -> Any:
    return np.array([vector(text) for text in texts], dtype=np.float32)


def test_vectors_are_in_order_and_carry_their_metadata(
    make_client: Any, server: ScriptedServer
) -> None:
    result = make_client(server.url).embed(TEXTS)
    assert isinstance(result, Vectors)
    assert result.dtype == np.float32
    assert np.array_equal(result, expected(TEXTS))
    assert result.space == Space.parse(SPACE)
    assert result.source == "service"
    assert (result.info.model, result.info.tokens) == ("m", 7)


def test_info_counts_the_cached_texts(make_client: Any, server: ScriptedServer) -> None:
    client = make_client(server.url, batch_size=2, concurrency=1)
    server.script = [
        vectors(**{"x-cache": "hits=2; misses=0; tier=l1,l2"}),
        vectors(**{"x-cache": "hits=0; misses=1"}),
    ]
    assert client.embed(["a", "b", "c"]).info.cached == 2
    server.script = [vectors(**{"x-cache": "hits=1; misses=1; tier=l1"}), vectors()]
    assert client.embed(["a", "b", "c"]).info.cached is None  # another service for the rest
    assert client.embed(["a"]).info.cached is None


def test_info_has_the_cost_of_all_requests(make_client: Any, server: ScriptedServer) -> None:
    client = make_client(server.url, batch_size=2, concurrency=1)
    server.script = [
        vectors(**{"x-cost-usd": "0.100000000"}),
        vectors(**{"x-cost-usd": "0.200000020"}),
    ]
    assert client.embed(["a", "b", "c"]).info.cost_usd == 0.30000002
    server.script = [vectors(**{"x-cost-usd": "nan"})]
    assert client.embed(["a"]).info.cost_usd is None
    assert client.embed(["a"]).info.cost_usd is None  # a model without a price


def test_an_async_client_serves_several_event_loops(server: ScriptedServer) -> None:
    """Also at the same time, each on a thread of its own."""
    client = AsyncClient(server.url)

    async def embed() -> bool:
        return np.array_equal(await client.embed(TEXTS), expected(TEXTS))

    assert asyncio.run(embed())
    assert asyncio.run(embed())
    loop = asyncio.new_event_loop()
    assert loop.run_until_complete(embed())
    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(lambda _: asyncio.run(embed()), range(8)))
    assert loop.run_until_complete(embed())
    loop.run_until_complete(client.close())
    loop.close()
    assert asyncio.run(embed())


def test_many_calls_of_an_async_client_wait_for_each_other(server: ScriptedServer) -> None:
    """A program may embed thousands of texts at the same time, each with a call of its own."""
    released = threading.Event()

    def wait(handler: Handler) -> None:
        released.wait(30)
        vectors()(handler)

    async def embed_all() -> list[Vectors]:
        async with AsyncClient(server.url) as client:
            calls = asyncio.gather(*(client.embed(f"text {i}") for i in range(250)))
            while len(server.bodies) < 100:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)  # for requests beyond the bound
            assert len(server.bodies) == 100
            released.set()
            return await calls

    server.script = [wait] * 250
    results = asyncio.run(embed_all())
    assert all(np.array_equal(row, vector(f"text {i}")) for i, row in enumerate(results))


def test_single_text_has_shape_dim(make_client: Any, server: ScriptedServer) -> None:
    client = make_client(server.url)
    assert client.embed("abc").shape == (DIM,)
    assert client.call("embed_query", "abc").shape == (DIM,)
    assert client.call("embed_documents", ["abc"]).shape == (1, DIM)
    assert [body.get("input_type") for body in server.bodies] == [None, "query", "document"]


def test_long_lists_are_split_in_order(make_client: Any, server: ScriptedServer) -> None:
    truncated = {"x-truncated-inputs": "1,3-4"}
    server.script = [vectors(**truncated) for _ in range(8)]
    result = make_client(server.url, batch_size=7, concurrency=3).embed(TEXTS)
    assert np.array_equal(result, expected(TEXTS))
    assert sorted(len(body["input"]) for body in server.bodies) == [1, *[7] * 7]
    assert result.info.tokens == 8 * 7
    assert result.info.truncated[:6] == (1, 3, 4, 8, 10, 11)
    # The last batch has only one text, but it isn't interactive.
    assert {headers["x-priority"] for headers in server.headers} == {"bulk"}


def test_concurrency_is_reached_and_not_exceeded(make_client: Any, server: ScriptedServer) -> None:
    lock, three_arrived = threading.Lock(), threading.Barrier(3, timeout=60)
    current, maximum = 0, 0

    def count(handler: Handler) -> None:
        nonlocal current, maximum
        with lock:
            current += 1
            maximum = max(maximum, current)
        three_arrived.wait()  # breaks if fewer than three requests are concurrent
        with lock:
            current -= 1
        vectors()(handler)

    server.script = [count] * 21
    make_client(server.url, batch_size=1, concurrency=3).embed(TEXTS[:21])
    assert maximum == 3


def test_options_are_sent(make_client: Any, server: ScriptedServer) -> None:
    make_client(server.url, model="m", api_key="secret").embed(
        ["a"], dimensions=2, lane="interactive", truncation="error", use_cache=False
    )
    make_client(server.url).embed(
        ["a"], truncation="chunk", lane="bulk", model="n", input_type="query"
    )
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


@pytest.mark.parametrize("fault", [disconnect, error(500), error(503), error(429), error(502)])
def test_transient_failures_are_retried(
    make_client: Any, server: ScriptedServer, fault: Any
) -> None:
    server.script = [fault, fault]
    assert np.array_equal(make_client(server.url).embed(["abc"]), expected(["abc"]))
    assert server.posts == 3


@pytest.mark.parametrize(
    ("fault", "error_class"),
    [
        (error(500), ServerError),
        (error(429), RateLimitError),
        (disconnect, NetworkError),
    ],
)
def test_last_error_is_raised_after_max_retries(
    make_client: Any, server: ScriptedServer, fault: Any, error_class: type[EmbedError]
) -> None:
    server.script = [fault] * 9
    with pytest.raises(error_class):
        make_client(server.url).embed(["abc"])
    assert server.posts == 4


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_client_errors_are_not_retried(
    make_client: Any, server: ScriptedServer, status: int
) -> None:
    server.script = [error(status, "Invalid request.", x_request_id="r1")]
    with pytest.raises(HTTPError, match="Invalid request") as raised:
        make_client(server.url).embed(["abc"])
    assert type(raised.value) is HTTPError
    assert (raised.value.status, raised.value.server_code) == (status, "c")
    assert (raised.value.param, raised.value.request_id) == ("p", "r1")
    assert server.posts == 1


def test_retry_after_beyond_the_timeout_is_raised_at_once(
    make_client: Any, server: ScriptedServer
) -> None:
    server.script = [error(429, retry_after="3600")]
    with pytest.raises(RateLimitError) as raised:
        make_client(server.url, max_retry_delay_s=8.0).embed(["abc"])
    assert raised.value.retry_after_s == 3600
    assert server.posts == 1


def test_short_retry_after_is_waited_for(make_client: Any, server: ScriptedServer) -> None:
    server.script = [error(429, retry_after="1"), error(503)]
    client = make_client(server.url, retry_delay_s=0.01, max_retry_delay_s=8.0)
    assert len(client.embed(["abc"])) == 1


@pytest.mark.parametrize("fault", [slow_body, no_response], ids=["slow_body", "no_response"])
def test_timeout_bounds_the_whole_request(
    make_client: Any, server: ScriptedServer, fault: Any
) -> None:
    server.script = [fault] * 9
    with pytest.raises(RequestTimeoutError):
        make_client(server.url, timeout_s=1.0).embed(["abc"])
    assert server.posts == 1
    assert not server.ran_to_end


def test_unreachable_service_is_a_network_error(make_client: Any) -> None:
    with pytest.raises(NetworkError, match=r"Can't connect to 127\.0\.0\.1:9"):
        make_client("http://127.0.0.1:9").embed(["abc"])


FLOATS = {"data": [{"index": 1, "embedding": [1.0, 2.0]}, {"index": 0, "embedding": [3.0, 4.0]}]}
BASE64 = {"data": [{"index": 0, "embedding": "AACAPwAAAEA="}], "model": "other"}
RAW = {"content-type": "application/octet-stream"}


def test_other_openai_compatible_servers_are_understood(
    make_client: Any, server: ScriptedServer
) -> None:
    server.script = [respond(200, FLOATS), respond(200, BASE64)]
    client = make_client(server.url)
    assert client.embed(["a", "b"]).tolist() == [[3.0, 4.0], [1.0, 2.0]]
    result = client.embed(["a"])
    assert result.tolist() == [[1.0, 2.0]]
    assert (result.space, result.info.model) == (None, "other")


@pytest.mark.parametrize(
    "malformed",
    [
        respond(200, b"<html>"),
        respond(200, []),
        respond(200, {"data": []}),
        respond(200, FLOATS),
        respond(200, {"data": [{"index": 5, "embedding": [1.0]}]}),
        respond(200, {"data": [{"index": 0, "embedding": None}]}),
        respond(200, {"data": [{"index": 0, "embedding": "!"}]}),
        respond(200, {"data": [{"index": 0, "embedding": 1.0}]}),
        respond(200, b"\0" * 15, {**RAW, "x-embedding-shape": "1,4"}),
        respond(200, b"\0" * 32, {**RAW, "x-embedding-shape": "2,4"}),
        respond(200, b"\0" * 16, RAW),
        respond(200, b"\0\0\xc0\x7f", {**RAW, "x-embedding-shape": "1,1"}),
        vectors(space="nonsense"),
        vectors(**{"x-truncated-inputs": "all"}),
    ],
)
def test_malformed_responses_are_parse_errors(
    make_client: Any, server: ScriptedServer, malformed: Any
) -> None:
    server.script = [malformed]
    with pytest.raises(ParseError):
        make_client(server.url).embed(["a"])


def test_truncated_body_is_retried(make_client: Any, server: ScriptedServer) -> None:
    server.script = [respond(200, b"\0" * 16, {**RAW, "x-embedding-shape": "1,4"}, cut=5)]
    assert np.array_equal(make_client(server.url).embed(["abc"]), expected(["abc"]))
    assert server.posts == 2


def test_incomparable_spaces_are_rejected(make_client: Any, server: ScriptedServer) -> None:
    family = SPACE.partition("-")[0]
    server.script = [vectors(), vectors(f"{family}-bf16"), vectors("f" * 16 + "-fp32"), vectors()]
    client = make_client(server.url)
    assert len(client.embed(["a"])) == len(client.embed(["a"])) == 1
    with pytest.raises(SpaceMismatchError, match="can't be compared"):
        client.embed(["a"])
    assert len(client.embed(["a"])) == 1
    server.script = [vectors(f"{family}-int8"), vectors(None)]
    for _ in range(2):
        with pytest.raises(SpaceMismatchError):
            client.embed(["a"])


def test_each_model_that_a_call_names_has_a_space_of_its_own(
    make_client: Any, server: ScriptedServer
) -> None:
    other = "f" * 16 + "-fp32"
    server.script = [vectors(), vectors(other), vectors(other), vectors()]
    client = make_client(server.url)
    assert str(client.embed(["a"]).space) == SPACE
    assert str(client.embed(["a"], model="other").space) == other
    with pytest.raises(SpaceMismatchError):
        client.embed(["a"])
    with pytest.raises(SpaceMismatchError):
        client.embed(["a"], model="other")
    assert str(client.client.space) == SPACE
    server.script = [vectors(other)]
    with pytest.raises(SpaceMismatchError):
        make_client(server.url, expected_space=SPACE).embed(["a"], model="other")


def test_health_and_info_of_a_model(make_client: Any, server: ScriptedServer) -> None:
    server.info = {"model_id": "m"}
    client = make_client(server.url, model="m")
    client.call("health")
    client.call("is_healthy", model="n")
    client.call("info")
    client.call("info", model="org/n")
    make_client(server.url).call("health")
    assert server.paths == [
        "/health?model=m",
        "/health?model=n",
        "/info?model=m",
        "/info?model=org%2Fn",
        "/health",
    ]


def test_allow_mixed_spaces(make_client: Any, server: ScriptedServer) -> None:
    server.script = [vectors(), vectors("f" * 16 + "-fp32")]
    client = make_client(server.url, allow_mixed_spaces=True)
    assert len(client.embed(["a"])) == len(client.embed(["a"])) == 1


def test_expected_space_is_required_of_the_first_vectors(
    make_client: Any, server: ScriptedServer
) -> None:
    with pytest.raises(SpaceMismatchError):
        make_client(server.url, expected_space="f" * 16 + "-fp32").embed(["a"])


def space_conflict(handler: Handler) -> None:
    """Replies like a service whose model has another space than the request requires."""
    assert handler.headers["x-embedding-space"] == SPACE
    body = {"message": "Another space.", "code": "embedding_space_conflict", "type": "t"}
    handler.respond(409, {"error": body})


def test_pinned_space_is_sent_and_its_conflict_has_a_class(
    make_client: Any, server: ScriptedServer
) -> None:
    client = make_client(server.url, expected_space=SPACE)
    server.script = [vectors(), space_conflict, error(409)]
    assert len(client.embed(["a"])) == 1
    with pytest.raises(SpaceConflictError, match="Another space") as raised:
        client.embed(["a"])
    assert server.posts == 2  # no retry: it would fail again
    conflict = raised.value
    assert isinstance(conflict, SpaceMismatchError)
    assert (conflict.status, conflict.code) == (409, "SPACE_CONFLICT")
    copied = pickle.loads(pickle.dumps(conflict))
    assert (type(copied), str(copied), copied.status) == (SpaceConflictError, str(conflict), 409)
    with pytest.raises(HTTPError) as other:  # a conflict of anything else
        client.embed(["a"])
    assert type(other.value) is HTTPError


def test_only_a_pinned_space_is_sent(make_client: Any, server: ScriptedServer) -> None:
    client = make_client(server.url)
    client.embed(["a"])
    client.embed(["a"])
    make_client(server.url, expected_space=SPACE, allow_mixed_spaces=True).embed(["a"])
    pinned = make_client(server.url, expected_space=SPACE)
    server.script = [respond(200, [[]])]
    pinned.call("embed_sparse", ["a"])  # its vectors are of another model
    assert not any("x-embedding-space" in headers for headers in server.headers)


def test_first_failed_batch_ends_the_call(make_client: Any, server: ScriptedServer) -> None:
    server.script = [vectors(), error(400, "Text 1 is empty.")]
    match = r"Text 1 is empty\. Positions are relative to the batch of texts 5-9"
    with pytest.raises(HTTPError, match=match):
        make_client(server.url, batch_size=5, concurrency=1).embed(TEXTS)
    assert server.posts == 2


def test_health_is_returned_for_an_unhealthy_service_too(
    make_client: Any, server: ScriptedServer
) -> None:
    client = make_client(server.url)
    assert client.call("health") == {"status": "ok"}
    assert client.call("is_healthy")
    server.healthy = False
    assert client.call("health") == {"status": "unavailable"}
    assert not client.call("is_healthy")
    with pytest.raises(HTTPError, match="Not found"):
        client.call("info")


def test_api_key_is_in_no_error_repr_or_log(
    make_client: Any, server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    client = make_client(server.url, api_key="s3cret-key")
    server.script = [error(401, "Unknown key.")]
    with pytest.raises(HTTPError) as raised:
        client.embed(["a"])
    visible = f"{raised.value!r} {raised.value.__dict__} {client.client!r} {caplog.text}"
    assert "s3cret" not in visible


@pytest.mark.parametrize("key", ["s3cret\n", "s3cret\r\nx: y", "s3crét", "s3\0cret"])
def test_api_key_that_no_header_can_hold_is_rejected_without_quoting_it(
    make_client: Any, key: str
) -> None:
    with pytest.raises(ValueError, match="a header can't hold") as raised:
        make_client("http://127.0.0.1:9", api_key=key)
    assert "s3" not in str(raised.value)


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://x", "http://"])
def test_malformed_url_is_rejected(make_client: Any, url: str) -> None:
    with pytest.raises(ValueError, match="The form is http://host:port"):
        make_client(url)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"timeout_s": 0}, "timeout_s"),
        ({"batch_size": 0}, "batch_size"),
        ({"concurrency": 0}, "concurrency"),
        ({"fallback": "cloud"}, "fallback"),
    ],
)
def test_invalid_options_are_rejected(make_client: Any, options: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        make_client("http://127.0.0.1:9", **options)


def test_unknown_options_are_rejected(make_client: Any) -> None:
    with pytest.raises(TypeError, match="no option 'timeout'"):
        make_client("http://127.0.0.1:9", timeout=1)


def test_url_and_key_default_to_the_environment(
    make_client: Any, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDSERVE_URL", server.url)
    monkeypatch.setenv("EMBEDSERVE_API_KEY", "k")
    assert len(make_client().embed(["a"])) == 1
    assert server.headers[0]["authorization"] == "Bearer k"


def test_default_url_is_port_8000_on_this_machine(make_client: Any) -> None:
    assert make_client().client.base_url == "http://127.0.0.1:8000"


def test_threads_share_a_client(server: ScriptedServer) -> None:
    failures: list[BaseException] = []
    with Client(server.url, batch_size=3) as client:

        def work(number: int) -> None:
            texts = [f"{number} {i}" for i in range(10)]
            try:
                assert np.array_equal(client.embed(texts), expected(texts))
            except BaseException as failure:
                failures.append(failure)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []


def _embed_in_child(client: Client, results: Any) -> None:
    results.put(client.embed(["abc", "de"]).tolist())


def test_forked_child_opens_its_own_connections(server: ScriptedServer) -> None:
    context = multiprocessing.get_context("fork")
    with Client(server.url) as client:
        client.embed(["a"])  # opens a connection
        results = context.Queue()
        children = [
            context.Process(target=_embed_in_child, args=(client, results)) for _ in range(3)
        ]
        for child in children:
            child.start()
        for _ in range(10):
            assert np.array_equal(client.embed(["abc"]), expected(["abc"]))
        for child in children:
            assert results.get(timeout=30) == expected(["abc", "de"]).tolist()
            child.join()


def test_errors_can_be_pickled() -> None:
    rate_limit = RateLimitError("busy", 429, server_code="c", param="p", request_id="r")
    rate_limit.retry_after_s = 3.0
    for original in (rate_limit, RequestTimeoutError("late"), SpaceMismatchError("no")):
        restored = pickle.loads(pickle.dumps(original))
        assert type(restored) is type(original)
        assert (str(restored), restored.__dict__) == (str(original), original.__dict__)


def test_rows_keep_metadata_and_computed_arrays_are_plain() -> None:
    original = Vectors([[1.0, 2.0], [3.0, 4.0]], VectorInfo(Space.parse(SPACE), "m", "service"))
    for part in (original[0], original[1:], original.copy(), original.T):
        assert isinstance(part, Vectors)
        assert part.space == original.space
    restored = pickle.loads(pickle.dumps(original))
    assert np.array_equal(restored, original)
    assert restored.info == original.info
    assert copy.deepcopy(original).info == original.info
    for computed in (
        original @ original.T,
        original + 1,
        original.sum(axis=0),
        original == original,
    ):
        assert type(computed) is np.ndarray
    assert type(original.sum()) is np.float32
