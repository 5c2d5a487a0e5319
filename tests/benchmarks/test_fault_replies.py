import json
from typing import Any

import numpy as np
import pytest

from benchmarks.faults.apis import APIS, Api
from benchmarks.faults.ledger import Kind
from benchmarks.faults.reply_check import Reply, ReplyCheck

SPACE = "0123456789abcdef-fp32"
VECTORS = np.eye(4, 8, dtype=np.float32)
REPLIES: dict[str, Any] = {
    "openai": lambda v: {"data": [{"embedding": row} for row in v]},
    "tei": lambda v: v,
    "cohere": lambda v: {"embeddings": {"float": v}},
    "ollama": lambda v: {"embeddings": v},
    "sidecar": lambda v: {"vectors": v},
}
ERRORS: dict[str, Any] = {
    "openai": {"error": {"message": "The queue is full.", "type": "x"}},
    "tei": {"error": "The queue is full.", "error_type": "Overloaded"},
    "cohere": {"message": "The queue is full."},
    "ollama": {"error": "The queue is full."},
    "sidecar": {"error": "The queue is full."},
}
PROXY_ERROR = {"error": {"message": "No replica runs."}, "detail": "No replica runs."}
EACH_API = pytest.mark.parametrize("api", APIS, ids=lambda api: api.name)


def judge(api: Api, status: int, body: object, **headers: str) -> Kind:
    sent = {"x-embedding-space": SPACE, **{k.replace("_", "-"): v for k, v in headers.items()}}
    reply = Reply(status, sent, body if isinstance(body, bytes) else json.dumps(body).encode())
    return ReplyCheck(VECTORS, SPACE).judge(api, [2, 0], reply)[0]


def reply_of(api: Api, vectors: Any) -> Any:
    return REPLIES[api.name](np.asarray(vectors).tolist())


@EACH_API
def test_the_vectors_of_the_texts_are_right(api: Api) -> None:
    assert judge(api, 200, reply_of(api, VECTORS[[2, 0]])) is Kind.RIGHT


@pytest.mark.parametrize(
    ("vectors", "kind"),
    [
        (VECTORS[[2, 1, 3]], Kind.RIGHT),
        (VECTORS[[1, 2, 3]], Kind.WRONG),
        (VECTORS[[2, 1]], Kind.WRONG),
        (VECTORS[[2, 1, 3]] * [[1], [1], [2]], Kind.WRONG),
    ],
    ids=["right", "in another order", "too few", "an unknown one too long"],
)
def test_unknown_texts_have_vectors_of_length_1_after_those_of_known_texts(
    vectors: Any, kind: Kind
) -> None:
    reply = Reply(
        200, {"x-embedding-space": SPACE}, json.dumps(reply_of(APIS[0], vectors)).encode()
    )
    assert ReplyCheck(VECTORS, SPACE).judge(APIS[0], [2], reply, unknown=2)[0] is kind


@EACH_API
@pytest.mark.parametrize(
    "vectors",
    [
        VECTORS[[0, 2]],
        VECTORS[[2]],
        VECTORS[[2, 0]] * 1.5,
        VECTORS[[2, 0], :4],
        [VECTORS[2], VECTORS[0] + 0.1],
    ],
    ids=["in another order", "too few", "too long", "too few dimensions", "another vector"],
)
def test_other_vectors_are_wrong(api: Api, vectors: Any) -> None:
    assert judge(api, 200, reply_of(api, vectors)) is Kind.WRONG


def test_not_a_number_is_wrong() -> None:
    check = ReplyCheck(np.full((1, 8), np.nan, np.float32), SPACE)
    body = json.dumps({"vectors": [[0.0] * 8]}).encode()
    assert check.judge(APIS[-1], [0], Reply(200, {"x-embedding-space": SPACE}, body))[0] is (
        Kind.WRONG
    )


@pytest.mark.parametrize("space", ["0123456789abcdef-int8", ""])
def test_the_space_of_other_vectors_is_wrong(space: str) -> None:
    api = APIS[0]
    assert judge(api, 200, reply_of(api, VECTORS[[2, 0]]), x_embedding_space=space) is Kind.WRONG


@EACH_API
@pytest.mark.parametrize("status", [429, 503, 504])
def test_an_error_that_says_when_to_retry_is_a_refusal(api: Api, status: int) -> None:
    assert judge(api, status, ERRORS[api.name], retry_after="1") is Kind.REFUSED
    assert judge(api, status, PROXY_ERROR, retry_after="1") is Kind.REFUSED


@EACH_API
@pytest.mark.parametrize("status", [400, 401, 404, 500, 502])
def test_other_statuses_are_failures(api: Api, status: int) -> None:
    assert judge(api, status, ERRORS[api.name], retry_after="1") is Kind.FAILED


@pytest.mark.parametrize(("status", "kind"), [(429, Kind.FAILED), (504, Kind.REFUSED)])
def test_a_refusal_without_retry_after_is_a_failure_unless_it_is_too_late(
    status: int, kind: Kind
) -> None:
    assert judge(APIS[0], status, ERRORS["openai"]) is kind


@EACH_API
@pytest.mark.parametrize("body", [b"<html>", b"", b"[]", b"{}", b"null"])
def test_bodies_of_no_api_are_failures(api: Api, body: bytes) -> None:
    assert judge(api, 503, body, retry_after="1") is Kind.FAILED
    assert judge(api, 200, body) in (Kind.FAILED, Kind.WRONG)


def test_only_a_refusal_says_when_to_retry() -> None:
    assert Reply(429, {"retry-after": "3"}, b"").retry_after_s == 3
    assert Reply(200, {"retry-after": "3"}, b"").retry_after_s is None
    assert Reply(503, {"retry-after": "soon"}, b"").retry_after_s is None


def test_vectors_of_an_accepted_space_are_right_under_its_name_only() -> None:
    check = ReplyCheck(VECTORS, SPACE)
    others = np.roll(VECTORS, 1, axis=1)
    check.accept(others, "fedcba9876543210-fp32")
    (api,) = (api for api in APIS if api.name == "tei")
    body = json.dumps(others[[2, 0]].tolist()).encode()
    for space, kind in {
        "fedcba9876543210-fp32": Kind.RIGHT,
        SPACE: Kind.WRONG,
        "00000000000000ff-fp32": Kind.WRONG,
    }.items():
        assert check.judge(api, [2, 0], Reply(200, {"x-embedding-space": space}, body))[0] is kind
