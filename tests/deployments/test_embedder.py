import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from ray.serve import context
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve._private.config import DeploymentConfig
from ray.serve.schema import ReplicaRank

from serve_app.config import EmbedderSettings
from serve_app.deployments.embedder import Embedder, _check_device
from serve_app.engines.base import TokenIds
from serve_app.errors import ConfigurationError
from serve_app.scheduler.scheduler import Scheduler
from serve_app.types import Input, TextGroup, Vectors
from tests.fakes import SPEC, FakeEngine

#: So long that they are tokenised in a thread, and not in place.
LEAVES, STAYS = "leaves " * 400, "stays " * 400


class SlowTokenizer(FakeEngine):
    """Tokenising takes until the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go_on = threading.Event(), threading.Event()

    def tokenize(self, texts: Sequence[Input]) -> list[TokenIds]:
        self.begun.set()
        assert self.go_on.wait(10), "The test held the tokenizer and never released it."
        return super().tokenize(texts)


@pytest.fixture
def in_a_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `@serve.batch` looks up of the replica it runs in; there is no public way to set it."""
    monkeypatch.setattr(context, "_INTERNAL_REPLICA_CONTEXT", None)  # and so again afterwards
    context._set_internal_replica_context(
        replica_id=ReplicaID("r", DeploymentID("Embedder", "embedserve")),
        servable_object=Embedder,
        _deployment_config=DeploymentConfig(max_ongoing_requests=8192),
        rank=ReplicaRank(rank=0, node_rank=0, local_rank=0),
        world_size=1,
    )


@pytest.mark.usefixtures("in_a_replica")
async def test_a_caller_that_leaves_while_its_texts_are_tokenized_costs_no_batch() -> None:
    engine = SlowTokenizer()
    embedder = Embedder.__new__(Embedder)  # past the loading of a model
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as two:
        embedder._scheduler = Scheduler(
            engine, EmbedderSettings(), engine_threads=one, tokenizer_thread=two
        )
        embedder._scheduler.start()
        leaves = asyncio.create_task(embedder.embed((TextGroup((LEAVES,)),)))
        await asyncio.to_thread(engine.begun.wait, 10)
        stays = asyncio.create_task(embedder.embed((TextGroup((STAYS,)),)))
        await asyncio.sleep(0)
        leaves.cancel()
        await asyncio.sleep(0)
        engine.go_on.set()
        (vectors,) = await stays
        assert isinstance(vectors, Vectors)
        await embedder._scheduler.stop()
    assert engine.batches == [[STAYS[: SPEC.max_tokens]]]


@pytest.mark.parametrize(
    ("device", "given", "words"),
    [("cuda", False, "set `num_gpus`"), ("cpu", True, "set `device: cuda`")],
)
def test_a_replica_that_got_another_device_than_configured_does_not_start(
    device: str, given: bool, words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        _check_device(device, given=given)
    _check_device(device, given=not given)
