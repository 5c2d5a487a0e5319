"""Each provider, by its own client library, against a server that also misbehaves."""

import json
import logging
import pickle
import sys
import time
import traceback
from collections.abc import AsyncIterator, Iterator, Mapping
from email.utils import formatdate
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest

from serve_app.config import ModelConfig, ProviderSettings
from serve_app.errors import (
    ConfigurationError,
    EmbedServeError,
    InvalidRequest,
    Overloaded,
    Unavailable,
    UpstreamError,
)
from serve_app.models import resolve
from serve_app.providers import load_provider
from serve_app.providers.base import Provider
from tests.providers import fake_servers
from tests.providers.fake_servers import (
    DIM,
    KEY,
    Behavior,
    FakeServer,
    Kind,
    count_tokens,
    fake_vectors,
    rate_limited,
    run_fake_server,
)

TEXTS = ["one text", "Zürich and 北京", "a third"]
#: Far more than a local call takes, and what a test waits for a call that hangs.
LIMIT_S, SHORT_S = 20.0, 0.3
KEY_ENV = "FAKE_PROVIDER_KEY"


class Case(NamedTuple):
    """A source, and the server that it calls."""

    kind: Kind
    source: str
    settings: Mapping[str, Any] = MappingProxyType({})
    #: The prompt of a query, and the input type that the server gets for it and without a prompt.
    query: tuple[str, str, str] = ("", "", "")


CASES = {
    "openai": Case("openai", "openai:text-embedding-3-small"),
    "azure": Case("azure", "azure:embeddings", {"api_version": "2024-10-21"}),
    "azure-v1": Case("azure", "azure:embeddings"),
    "compatible": Case("openai", "compatible:org/model"),
    "cohere": Case(
        "cohere", "cohere:embed-v4.0", {}, ("search_query", "search_query", "search_document")
    ),
    "voyage": Case("voyage", "voyage:voyage-4", {}, ("query", "query", "")),
}
# Voyage's client logs a lost connection with a method that Python has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:The 'warn' method is deprecated")


#: For tests of what OpenAI, Azure and compatible servers share.
each_library = pytest.mark.parametrize("case", ["openai", "cohere", "voyage"], indirect=True)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture
def server(case: Case) -> Iterator[FakeServer]:
    with run_fake_server(case.kind) as server:
        yield server


def load(case: Case, server: FakeServer, **settings: Any) -> Provider:
    settings = {"base_url": server.url, "dimensions": DIM, "api_key_env": KEY_ENV} | settings
    config = ModelConfig.model_validate(
        {"name": "m", "source": case.source, "provider": {**case.settings, **settings}}
    )
    return load_provider(config, resolve(config))


@pytest.fixture
async def provider(
    case: Case, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Provider]:
    monkeypatch.setenv(KEY_ENV, KEY)
    provider = load(case, server)
    yield provider
    await provider.close()


async def test_texts_become_vectors_in_their_order(case: Case, provider: Provider) -> None:
    reply = await provider.embed(TEXTS, "", LIMIT_S)
    expected = fake_vectors(*TEXTS, input_type=case.query[2])
    assert reply.vectors.dtype == np.float32
    assert np.array_equal(reply.vectors, expected)
    assert reply.total_tokens == count_tokens(*TEXTS)


async def test_an_input_type_is_a_parameter(
    case: Case, provider: Provider, server: FakeServer
) -> None:
    prompt, input_type, _ = case.query
    reply = await provider.embed(TEXTS, prompt, LIMIT_S)
    assert np.array_equal(reply.vectors, fake_vectors(*TEXTS, input_type=input_type))
    assert server.received[0].texts == TEXTS


async def test_openai_gets_a_prompt_as_part_of_each_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(KEY_ENV, KEY)
    with run_fake_server("openai") as server:
        provider = load(CASES["compatible"], server)
        await provider.embed(TEXTS, "query: ", LIMIT_S)
        await provider.close()
    assert server.received[0].texts == [f"query: {text}" for text in TEXTS]


async def test_calls_share_connections(provider: Provider, server: FakeServer) -> None:
    for _ in range(3):
        await provider.embed(TEXTS, "", LIMIT_S)
    assert server.connections == 1


async def test_large_batches_are_checked_too(
    case: Case, provider: Provider, server: FakeServer
) -> None:
    texts = [f"text {i}" for i in range(96)]
    server.script.append(fake_servers.NAN)
    with pytest.raises(UpstreamError, match="aren't finite"):
        await provider.embed(texts, "", LIMIT_S)
    reply = await provider.embed(texts, "", LIMIT_S)
    assert np.array_equal(reply.vectors, fake_vectors(*texts, input_type=case.query[2]))


async def test_vectors_as_numbers_are_accepted(
    case: Case, provider: Provider, server: FakeServer
) -> None:
    server.script.append(fake_servers.FLOATS)
    reply = await provider.embed(TEXTS, "", LIMIT_S)
    assert np.array_equal(reply.vectors, fake_vectors(*TEXTS, input_type=case.query[2]))


async def test_vectors_in_another_order_are_sorted_by_their_index(
    case: Case, provider: Provider, server: FakeServer
) -> None:
    if case.kind == "cohere":
        pytest.skip("Cohere's vectors have no index.")
    server.script.append(fake_servers.REORDERED)
    reply = await provider.embed(TEXTS, "", LIMIT_S)
    assert np.array_equal(reply.vectors, fake_vectors(*TEXTS))


@each_library
@pytest.mark.parametrize(
    "name",
    [
        *("GARBAGE", "HALF_JSON", "DEEP_JSON", "OTHER_JSON", "EMPTY_JSON", "HALF_LIST", "TOO_WIDE"),
        *("NAN", "INFINITE", "NO_BASE64", "STRINGS"),
    ],
)
async def test_a_wrong_reply_is_an_error(name: str, provider: Provider, server: FakeServer) -> None:
    server.script.append(getattr(fake_servers, name))
    with pytest.raises(UpstreamError):
        await provider.embed(TEXTS, "", LIMIT_S)
    assert len(server.received) == 1
    await provider.embed(TEXTS, "", LIMIT_S)


@each_library
@pytest.mark.parametrize(
    "content",
    [
        *(None, 3, "text", [], [[]], {"data": None}, {"data": {}}, {"data": [1, 2, 3]}),
        {"data": [{"index": str(i), "embedding": []} for i in range(3)]},
        {"data": [{"index": i, "embedding": None} for i in range(3)], "usage": 3},
        {"data": [{"index": i} for i in range(3)], "usage": []},
        {"data": [{"index": i, "embedding": [[1.0], 2.0]} for i in range(3)]},
        {"data": [{"index": i, "embedding": [1e300] * DIM} for i in range(3)]},
        {"data": [{"index": i, "embedding": [10**400] * DIM} for i in range(3)]},
        {"data": [{"index": i, "embedding": [True] * DIM} for i in range(3)]},
        {"embeddings": [], "meta": []},
        {"embeddings": {"base64": None}, "meta": {"billed_units": []}},
        {"embeddings": {"base64": "text"}},
        {"embeddings": {"base64": [1, 2, 3]}},
        {"embeddings": {"base64": [[None] * DIM] * 3}},
        {"embeddings": {"float": [[0.5] * DIM] * 3}},
    ],
    ids=lambda content: repr(content)[:40],
)
async def test_json_of_any_other_form_is_an_error(
    content: object, provider: Provider, server: FakeServer
) -> None:
    server.script.append(Behavior(body=json.dumps(content).encode()))
    with pytest.raises(UpstreamError, match=r"[Tt]he provider \w+ returned"):
        await provider.embed(TEXTS, "", LIMIT_S)


@pytest.mark.parametrize("usage", [None, {}, {"total_tokens": -1}, {"total_tokens": "3"}, 3])
async def test_a_provider_need_not_say_how_many_tokens_it_bills(
    usage: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_ENV, KEY)
    data = [{"index": 0, "embedding": [0.5] * DIM}]
    with run_fake_server("openai") as server:
        server.script.append(Behavior(body=json.dumps({"data": data, "usage": usage}).encode()))
        provider = load(CASES["compatible"], server)
        reply = await provider.embed(["text"], "", LIMIT_S)
        await provider.close()
    assert reply.total_tokens is None


async def test_an_index_that_occurs_twice_is_an_error(
    case: Case, provider: Provider, server: FakeServer
) -> None:
    if case.kind == "cohere":
        pytest.skip("Cohere's vectors have no index.")
    server.script.append(fake_servers.TWICE)
    with pytest.raises(UpstreamError, match="not one for each of 3 texts"):
        await provider.embed(TEXTS, "", LIMIT_S)


async def test_another_width_says_which_setting_is_wrong(
    provider: Provider, server: FakeServer
) -> None:
    server.script.append(fake_servers.TOO_WIDE)
    with pytest.raises(UpstreamError, match=r"length 16, not 8; `provider\.dimensions`"):
        await provider.embed(TEXTS, "", LIMIT_S)


@pytest.mark.parametrize("name", ["HANGS", "SLOW_BYTES"])
async def test_a_call_ends_at_its_time_limit(
    name: str, provider: Provider, server: FakeServer
) -> None:
    server.script.append(getattr(fake_servers, name))
    with pytest.raises(Unavailable, match=r"didn't answer in 0\.3 s"):
        await provider.embed(TEXTS, "", SHORT_S)
    assert len(server.received) == 1  # the pool repeats calls, not the library
    await provider.embed(TEXTS, "", LIMIT_S)


@pytest.mark.parametrize("name", ["CLOSED", "CUT_OFF", "SERVER_ERROR"])
async def test_a_failure_is_not_repeated_by_the_library(
    name: str, provider: Provider, server: FakeServer
) -> None:
    server.script.append(getattr(fake_servers, name))
    with pytest.raises(Unavailable):
        await provider.embed(TEXTS, "", LIMIT_S)
    assert len(server.received) == 1
    await provider.embed(TEXTS, "", LIMIT_S)


async def test_an_unreachable_provider_is_unavailable(
    case: Case, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_ENV, KEY)
    provider = load(case, server, base_url="http://127.0.0.1:9")
    with pytest.raises(Unavailable, match="connection to the provider"):
        await provider.embed(TEXTS, "", LIMIT_S)
    await provider.close()


async def test_an_overloaded_provider_says_when_to_retry(
    provider: Provider, server: FakeServer
) -> None:
    server.script.append(fake_servers.OVERLOADED_SERVER)
    with pytest.raises(Unavailable) as caught:
        await provider.embed(TEXTS, "", LIMIT_S)
    assert caught.value.retry_after_s == 7


def http_date(seconds: float) -> str:
    return formatdate(time.time() + seconds, usegmt=True)


@each_library
@pytest.mark.parametrize(
    ("behavior", "expected"),
    [
        (rate_limited(), {0}),
        (rate_limited(retry_after="4"), {4}),
        (rate_limited(retry_after="1.5"), {2}),
        (rate_limited(retry_after_ms="2500"), {3}),
        (rate_limited(retry_after_ms="x", retry_after="4"), {4}),
        (rate_limited(retry_after=http_date(9000)), {*range(5000, 9001)}),
        (rate_limited(retry_after=http_date(-90)), {0}),
        (rate_limited(retry_after="soon"), {0}),
        (rate_limited(retry_after="-3"), {0}),
        (rate_limited(retry_after="inf"), {0}),
    ],
    ids=[
        *("none", "seconds", "fraction", "milliseconds", "nonsense in milliseconds"),
        *("date", "past date", "nonsense", "negative", "infinite"),
    ],
)
async def test_a_rate_limit_is_passed_on(
    behavior: Behavior, expected: set[int], provider: Provider, server: FakeServer
) -> None:
    server.script.append(behavior)
    with pytest.raises(Overloaded) as caught:
        await provider.embed(TEXTS, "", LIMIT_S)
    assert caught.value.retry_after_s in expected
    assert len(server.received) == 1


async def test_an_account_without_credit_is_no_rate_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(KEY_ENV, KEY)
    body = b'{"error": {"message": "", "type": "insufficient_quota", "code": "insufficient_quota"}}'
    with run_fake_server("openai") as server:
        server.script.append(Behavior(status=429, error_body=body))
        provider = load(CASES["openai"], server)
        with pytest.raises(UpstreamError, match="no credit"):
            await provider.embed(TEXTS, "", LIMIT_S)
        await provider.close()


async def test_a_refused_text_is_an_invalid_request(provider: Provider, server: FakeServer) -> None:
    with pytest.raises(InvalidRequest, match=r"refused the texts: A text is refused") as caught:
        await provider.embed([*TEXTS, "a forbidden text"], "", LIMIT_S)
    assert "Your key is ***" in caught.value.message
    assert caught.value.param == "texts"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"error": {"message": "too\n long"}}, ": too long"),
        ({"error": "too long", "error_type": "Validation"}, ": too long"),
        ({"object": "error", "message": "too long"}, ": too long"),
        ({"detail": [{"loc": ["body"], "msg": "too long"}]}, ": too long"),
        ({"detail": "x" * 1000}, ": " + "x" * 300),
        ({"error": {"error": {"error": {"error": {"error": "too deep"}}}}}, "."),
        ([], "."),
        (f"no JSON, but {KEY}", ": no JSON, but ***"),
    ],
    ids=lambda value: repr(value)[:30],
)
async def test_a_compatible_server_may_explain_itself_in_any_format(
    body: object, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_ENV, KEY)
    content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    with run_fake_server("openai") as server:
        server.script.append(Behavior(status=422, error_body=content))
        provider = load(CASES["compatible"], server)
        with pytest.raises(InvalidRequest) as caught:
            await provider.embed(TEXTS, "", LIMIT_S)
        await provider.close()
    assert caught.value.message == f"The provider compatible refused the texts{said}"


@pytest.mark.parametrize(
    ("status", "message"),
    [(401, "Replace the key"), (403, "may not use the model"), (404, "Check `source`")],
)
async def test_a_provider_that_refuses_the_service_is_an_upstream_error(
    status: int, message: str, provider: Provider, server: FakeServer
) -> None:
    server.script.append(Behavior(status=status))
    with pytest.raises(UpstreamError, match=message):
        await provider.embed(TEXTS, "", LIMIT_S)


async def test_a_replaced_key_is_read_from_its_file(
    case: Case, server: FakeServer, tmp_path: Path
) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    provider = load(case, server, api_key_env=None, api_key_file=str(file))
    await provider.embed(TEXTS, "", LIMIT_S)
    server.keys = {"sk-new"}
    with pytest.raises(UpstreamError):
        await provider.embed(TEXTS, "", LIMIT_S)
    file.unlink()
    with pytest.raises(UpstreamError):
        await provider.embed(TEXTS, "", LIMIT_S)
    file.write_text("sk-new")
    await provider.embed(TEXTS, "", LIMIT_S)
    server.script.append(Behavior(status=400, error_body=f"{KEY} and sk-new".encode()))
    with pytest.raises(InvalidRequest) as caught:
        await provider.embed(TEXTS, "", LIMIT_S)
    assert KEY not in caught.value.message
    assert "sk-new" not in caught.value.message
    await provider.close()


async def test_the_key_is_in_no_log_and_no_error(
    provider: Provider,
    server: FakeServer,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    errors: list[EmbedServeError] = []
    for name in ("CLOSED", "CUT_OFF", "SERVER_ERROR", "UNAUTHORIZED", "RATE_LIMITED", "GARBAGE"):
        server.script.append(getattr(fake_servers, name))
        with pytest.raises(EmbedServeError) as caught:
            await provider.embed(TEXTS, "", LIMIT_S)
        errors.append(caught.value)
    with pytest.raises(EmbedServeError) as caught:
        await provider.embed(["forbidden"], "", LIMIT_S)
    errors.append(caught.value)
    texts = [caplog.text, repr(provider), *capfd.readouterr()]
    texts += [text for error in errors for text in traceback.format_exception(error)]
    assert [text for text in texts if KEY in text] == []
    assert "third" not in caplog.text
    assert [error for error in errors if KEY.encode() in pickle.dumps(error)] == []


async def test_the_provider_knows_limits_and_versions(provider: Provider, case: Case) -> None:
    limits = {
        "openai": (2048, 300_000),
        "azure": (2048, 300_000),
        "cohere": (96, 128_000),
        "voyage": (1000, 320_000),
    }
    assert provider.limits == limits[case.kind]
    assert all(version[0].isdigit() for version in provider.versions.values())


async def test_limits_can_be_lowered(
    case: Case, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_ENV, KEY)
    provider = load(case, server, max_batch_texts=5, max_batch_tokens=100)
    assert provider.limits == (5, 100)
    await provider.close()


@pytest.mark.parametrize(
    ("name", "library", "extra"),
    [
        ("azure", "openai", "openai"),
        ("cohere", "cohere", "cohere"),
        ("voyage", "voyageai", "voyage"),
    ],
)
async def test_a_missing_library_stops_the_start(
    name: str, library: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("openai_provider", "cohere_provider", "voyage_provider"):
        monkeypatch.delitem(sys.modules, f"serve_app.providers.{module}", raising=False)
    monkeypatch.setitem(sys.modules, library, None)
    config = ModelConfig(
        name="m",
        source=CASES[name].source,
        provider=ProviderSettings(base_url="http://localhost", dimensions=DIM),
    )
    message = rf"needs the package '{library}': `pip install 'embedserve\[{extra}\]'`"
    with pytest.raises(ConfigurationError, match=message):
        load_provider(config, resolve(config))


async def test_a_missing_key_stops_the_start(case: Case, server: FakeServer) -> None:
    with pytest.raises(ConfigurationError, match=f"names the environment variable {KEY_ENV}"):
        load(case, server)
    with pytest.raises(ConfigurationError, match=r"Can't read the file of `provider\."):
        load(case, server, api_key_env=None, api_key_file="/no/such/file")


@each_library
@pytest.mark.parametrize("value", ["", " ", "sk-1\nsk-2", "sk-ü", "sk 1"])
async def test_a_key_that_no_header_can_hold_stops_the_start(
    value: str, case: Case, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_ENV, value)
    with pytest.raises(ConfigurationError, match="Put an API key into") as caught:
        load(case, server)
    assert not value.strip() or value not in caught.value.message


async def test_a_compatible_server_never_gets_the_key_of_openai(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with run_fake_server("openai") as server:
        server.keys = {"none"}
        provider = load(CASES["compatible"], server, api_key_env=None)
        await provider.embed(TEXTS, "", LIMIT_S)
        await provider.close()
    assert KEY not in str(server.received)


@pytest.mark.parametrize(
    ("name", "path", "header"),
    [
        ("openai", "/v1/embeddings", "authorization"),
        ("azure", "/openai/deployments/embeddings/embeddings?api-version=2024-10-21", "api-key"),
        ("azure-v1", "/openai/v1/embeddings", "authorization"),
        ("compatible", "/v1/embeddings", "authorization"),
        ("cohere", "/v2/embed", "authorization"),
        ("voyage", "/v1/embeddings", "authorization"),
    ],
)
async def test_each_api_has_its_path_and_header(
    name: str, path: str, header: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_ENV, KEY)
    with run_fake_server(CASES[name].kind) as server:
        provider = load(CASES[name], server)
        await provider.embed(TEXTS, "", LIMIT_S)
        await provider.close()
    (received,) = server.received
    assert received.path == path
    assert received.headers[header].removeprefix("Bearer ") == KEY


async def test_the_address_of_azure_may_have_the_path_of_its_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(KEY_ENV, KEY)
    with run_fake_server("azure") as server:
        provider = load(CASES["azure-v1"], server, base_url=f"{server.url}/openai/v1/")
        await provider.embed(TEXTS, "", LIMIT_S)
        await provider.close()
    assert server.received[0].path == "/openai/v1/embeddings"


async def test_calls_go_through_the_proxy_of_the_environment(
    case: Case, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_ENV, KEY)
    monkeypatch.setenv("http_proxy", server.url.removesuffix("/v1"))
    monkeypatch.delenv("no_proxy", raising=False)
    provider = load(case, server, base_url="http://api.invalid/v1")
    await provider.embed(TEXTS, "", LIMIT_S)
    await provider.close()
    assert server.received[0].path.startswith("http://api.invalid/v1")


async def test_dimensions_are_asked_for_where_they_differ_from_the_models_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(KEY_ENV, KEY)
    for name, own, field in (
        ("openai", 1536, "dimensions"),
        ("cohere", 1536, "output_dimension"),
        ("voyage", 1024, "output_dimension"),
        ("compatible", 32, ""),
    ):
        with run_fake_server(CASES[name].kind) as server:
            for dimensions in (DIM, own):
                provider = load(CASES[name], server, dimensions=dimensions)
                server.script.append(fake_servers.EMPTY_JSON)
                with pytest.raises(UpstreamError):
                    await provider.embed(TEXTS, "", LIMIT_S)
                await provider.close()
        asked, own_dimensions = (request.body for request in server.received)
        assert asked.get(field) == (DIM if field else None)
        assert own_dimensions.get("dimensions") is None
        assert own_dimensions.get("output_dimension") is None
