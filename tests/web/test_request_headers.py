"""Request headers: decoding them, and applying them to jobs of each type."""

import math
from typing import Any

import pytest
from starlette.testclient import TestClient

from serve_app.config import IngressSettings
from serve_app.errors import InvalidRequest
from serve_app.jobs import BatchJob, DecodeJob, EmbedJob, Job, TokenizeJob, TokenVectorsJob
from serve_app.service.catalog import Catalog
from serve_app.service.embed import EmbedService
from serve_app.web.app import create_app
from serve_app.web.request_headers import (
    apply_request_headers,
    decode_headers,
    request_timeout_s,
    unfold,
)
from tests.fakes import SPEC, FakeBackend

BULK = {"x-priority": "bulk", "cache-control": "no-cache, No-Store"}
CHANGED = EmbedJob(("a",), lane="bulk", use_cache=False)


def test_values_of_a_repeated_header_are_joined() -> None:
    raw = [(b"cache-control", b"no-store"), (b"x", b"\xe9"), (b"cache-control", b"no-transform")]
    assert decode_headers(raw) == {"cache-control": "no-store, no-transform", "x": "é"}


SINGLE_VALUED = (
    "api-key",
    "authorization",
    "content-type",
    "x-api-key",
    "x-embedding-space",
    "x-priority",
    "x-request-timeout-s",
)


@pytest.mark.parametrize("name", SINGLE_VALUED)
def test_equal_values_of_a_header_with_one_value_are_one(name: str) -> None:
    assert decode_headers([(name.encode(), b"a"), (name.encode(), b"a")]) == {name: "a"}


@pytest.mark.parametrize(
    ("value", "unfolded"),
    [
        ("Bearer a", "Bearer a"),
        ("Bearer a, Bearer a,Bearer a", "Bearer a"),
        ("a, b", "a, b"),
        ('a; b="c,d"', 'a; b="c,d"'),
    ],
)
def test_equal_values_that_a_proxy_joined_are_one(value: str, unfolded: str) -> None:
    assert unfold(value) == unfolded


@pytest.mark.parametrize("name", SINGLE_VALUED)
def test_different_values_of_a_header_with_one_value_are_an_error(name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"`{name}`"):
        decode_headers([(name.encode(), b"a"), (name.encode(), b"b")])


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([("content-type", "application/json")] * 2, 200),
        ([("x-priority", "bulk")] * 2, 200),
        ([("x-priority", "bulk"), ("x-priority", "interactive")], 400),
        ([("content-type", "application/json, Application/JSON")], 200),
        ([("content-type", "application/json, text/plain")], 415),
        ([("x-priority", "bulk, bulk")], 200),
        ([("x-priority", "bulk, interactive")], 400),
    ],
    ids=repr,
)
def test_a_proxy_may_repeat_a_header(headers: list[tuple[str, str]], status: int) -> None:
    app = create_app(Catalog([EmbedService(SPEC, FakeBackend(), IngressSettings())]))
    if headers[0][0] != "content-type":
        headers = [("content-type", "application/json"), *headers]
    reply = TestClient(app).post("/v1/embeddings", content=b'{"input": "a"}', headers=headers)
    assert reply.status_code == status


@pytest.mark.parametrize(
    ("job", "changed"),
    [
        (EmbedJob(("a",)), CHANGED),
        (TokenVectorsJob(EmbedJob(("a",))), TokenVectorsJob(CHANGED)),
        (BatchJob((EmbedJob(("a",)), EmbedJob(("a",)))), BatchJob((CHANGED, CHANGED))),
        (TokenizeJob(("a",)), TokenizeJob(("a",))),
        (DecodeJob(((1,),)), DecodeJob(((1,),))),
    ],
    ids=lambda job: type(job).__name__,
)
def test_priority_and_no_store_set_options_of_the_job(job: Job[Any], changed: Job[Any]) -> None:
    assert apply_request_headers(job, BULK) == changed


@pytest.mark.parametrize(
    "headers", [{}, {"x-priority": "interactive"}, {"cache-control": "no-cache"}], ids=repr
)
def test_absent_headers_keep_the_options_of_the_job(headers: dict[str, str]) -> None:
    job = EmbedJob(("a",), lane="interactive", use_cache=False)
    assert apply_request_headers(job, headers) == job


def test_an_unknown_priority_is_rejected() -> None:
    with pytest.raises(InvalidRequest, match="`interactive` or `bulk`; it was 'high'") as raised:
        apply_request_headers(EmbedJob(("a",)), {"x-priority": "high"})
    assert raised.value.param == "x-priority"


@pytest.mark.parametrize(
    "value", ["0", "0.0", "-1", "abc", "nan", "inf", "1e-400", "", "\xff", "1_0"]
)
def test_a_time_limit_must_be_a_positive_number(value: str) -> None:
    with pytest.raises(InvalidRequest, match="x-request-timeout-s"):
        request_timeout_s({"x-request-timeout-s": value})


@pytest.mark.parametrize(
    ("value", "seconds"), [("2.5", 2.5), ("1e3", 1000), ("5e-324", 5e-324), ("1" * 400, math.inf)]
)
def test_a_time_limit_is_any_positive_number(value: str, seconds: float) -> None:
    assert request_timeout_s({"x-request-timeout-s": value}) == seconds


def test_a_client_lowers_the_time_limit_and_never_raises_it() -> None:
    backend = FakeBackend()
    backend.delay_s = 60
    service = EmbedService(SPEC, backend, IngressSettings(request_timeout_s=0.2))
    with TestClient(create_app(Catalog([service]))) as client:
        for header, limit in (("0.05", "0.05"), ("100", "0.2")):
            reply = client.post(
                "/v1/embeddings", json={"input": "a"}, headers={"x-request-timeout-s": header}
            )
            assert reply.status_code == 504
            assert f"within {limit} s" in reply.json()["error"]["message"]
