"""The deployment of models that providers run, without Ray."""

from typing import Any

import numpy as np
import pytest

from serve_app.cache.codec import task_codecs
from serve_app.config import AppConfig
from serve_app.deployments import http_replica
from serve_app.deployments.embed_server import EmbedServer
from serve_app.deployments.providers import Providers
from serve_app.errors import ConfigurationError, UnsupportedOperation, UpstreamError
from serve_app.model_prep.engine_selection import EngineSelection, select_engines
from serve_app.types import EncodedVectors, TextGroup
from tests.deployments.conftest import RANK
from tests.fakes import DIM, fake_vector
from tests.providers.fake_servers import KEY, fake_vectors, run_fake_server
from tests.providers.scripted_provider import ScriptedProvider, errors

#: The class without Ray's wrapper, which needs a running Ray.
EMBED_SERVER: Any = EmbedServer.__mro__[1]
CONFIG = AppConfig.parse(
    {
        "models": [
            {"name": "local", "source": "hashing:8"},
            {
                "name": "remote",
                "source": "openai:text-embedding-3-small",
                "provider": {"dimensions": DIM},
            },
        ],
        "cache": {"url": "none"},
    }
)


class ClosedByTest(Providers):
    """Isn't closed when it is collected: that takes an event loop."""

    def __del__(self) -> None:  # type: ignore[override]
        pass


@pytest.fixture
def selection() -> EngineSelection:
    _, remote = select_engines(CONFIG)
    return remote


@pytest.mark.usefixtures("assign_gpus")
async def test_groups_become_vectors_or_errors(selection: EngineSelection) -> None:
    provider = ScriptedProvider()
    replica = ClosedByTest(CONFIG, (selection,), load=lambda model, spec: provider)
    await replica.reconfigure({"max_queued_tokens": 1000}, RANK)
    engine_id = selection.cached_spec.engine_id
    groups = (TextGroup(("a", "b")), TextGroup(("c",), prompt="query: "), TextGroup(((1, 2),)))
    first, second, ids = await replica.run(engine_id, groups)  # type: ignore[misc]  # its own id
    codec = task_codecs(selection.spec)["embed"]
    for result, texts in ((first, "ab"), (second, "c")):
        assert isinstance(result, EncodedVectors)
        vectors = [row.vector.tolist() for row in codec.decode(result).rows()]  # type: ignore[union-attr]
        assert vectors == [fake_vector(text).tolist() for text in texts]
    assert isinstance(ids, UnsupportedOperation)
    provider.errors = errors(UpstreamError("The key was refused."))
    (failed,) = await replica.run(engine_id, (TextGroup(("d",)),))  # type: ignore[misc]
    assert isinstance(failed, UpstreamError)
    assert isinstance(await replica.tokenize(engine_id, ("a",), True), UnsupportedOperation)
    assert (await replica.describe(engine_id)).device == "remote"  # type: ignore[union-attr]
    await Providers.__del__(replica)
    assert provider.is_closed


@pytest.mark.usefixtures("assign_gpus")
async def test_a_caller_of_another_engine_gets_nothing(selection: EngineSelection) -> None:
    replica = ClosedByTest(CONFIG, (selection,), load=lambda model, spec: ScriptedProvider())
    assert await replica.run("another-fp32/remote", (TextGroup(("a",)),)) is None
    assert await replica.tokenize("another-fp32/remote", ("a",), True) is None
    assert await replica.decode("another-fp32/remote", ((1,),), True) is None
    assert await replica.describe("another-fp32/remote") is None


@pytest.mark.usefixtures("assign_gpus")
def test_a_missing_key_stops_the_start(
    selection: EngineSelection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigurationError, match="OPENAI_API_KEY"):
        ClosedByTest(CONFIG, (selection,))


class ServerClosedByTest(EMBED_SERVER):  # type: ignore[misc]
    """Isn't closed when it is collected, like the others."""

    def __del__(self) -> None:
        pass


async def test_an_embed_server_calls_providers_itself(
    assign_gpus: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def http_host() -> str:
        return "127.0.0.1"

    async def no_export(*arguments: object) -> None:
        """Ray's metrics need a running Ray."""

    monkeypatch.setattr(http_replica, "http_host", http_host)
    monkeypatch.setattr(http_replica, "export", no_export)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with run_fake_server("openai") as server:
        remote = {"name": "remote", "source": "openai:text-embedding-3-small"}
        provider = {"base_url": server.url, "dimensions": DIM}
        args = {"model": remote | {"provider": provider}, "cache": {"url": "none"}}
        config = AppConfig.parse(args | {"topology": "colocated"})
        replica = ServerClosedByTest(config, select_engines(config))
        await replica.reconfigure(None, RANK)
        assert np.array_equal(await replica.embed(["a", "b"]), fake_vectors("a", "b"))
        await replica.check_health()
        await EMBED_SERVER.__del__(replica)
