"""Request headers: decoding them, and applying them to jobs of each type."""

import pytest

from serve_app.errors import InvalidRequest
from serve_app.types import BatchJob, DecodeJob, EmbedJob, Job, TokenizeJob, TokenVectorsJob
from serve_app.web.request_headers import apply_request_headers, decode_headers

BULK = {"x-priority": "bulk", "cache-control": "no-cache, No-Store"}
CHANGED = EmbedJob(("a",), lane="bulk", use_cache=False)


def test_values_of_a_repeated_header_are_joined() -> None:
    raw = [(b"cache-control", b"no-store"), (b"x", b"\xe9"), (b"cache-control", b"no-transform")]
    assert decode_headers(raw) == {"cache-control": "no-store, no-transform", "x": "é"}


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
def test_priority_and_no_store_set_options_of_the_job(job: Job, changed: Job) -> None:
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
