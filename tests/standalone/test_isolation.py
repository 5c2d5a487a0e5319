"""Two models in one stream of requests share no cache entry, batch, space header or quota."""

import asyncio
from collections import Counter
from collections.abc import Sequence

import httpx2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app import standalone
from serve_app.access.keys import digest
from serve_app.config import AppConfig, EmbedServerSettings
from serve_app.engines.base import Engine, ModelInput, Rows
from serve_app.engines.hashing_engine import HashingEngine
from serve_app.model_prep.engine_selection import EngineSelection, select_engines
from serve_app.standalone import StandaloneService
from serve_app.tasks import Task
from serve_app.types import Float32

KEY, LIMIT = "s3cret", 10_000
MODELS = {"a": 16, "b": 24}
CONFIG = AppConfig.parse(
    {
        "models": [{"name": name, "source": f"hashing:{dim}"} for name, dim in MODELS.items()],
        "cache": {"url": "none"},
    }
)
SELECTIONS = {selection.spec.name: selection for selection in select_engines(CONFIG)}
REFERENCE = {name: HashingEngine(selection.spec) for name, selection in SELECTIONS.items()}
SETTINGS = EmbedServerSettings.model_validate(
    {
        "access": {"keys": [{"name": "k", "sha256": digest(KEY), "requests_per_minute": LIMIT}]},
        # Larger than any batch of these tests, so that a batch could hold texts of both models.
        "max_batch_tokens": 4096,
    }
)


class RecordingEngine:
    """Counts the texts of each batch that a hashing engine computes."""

    def __init__(self, engine: Engine, batches: list[int]) -> None:
        self.info, self.tasks, self.streams = engine.info, engine.tasks, engine.streams
        self.tokenizer = engine.tokenizer
        self._engine, self._batches = engine, batches

    def run(self, task: Task, batch: Sequence[ModelInput]) -> Rows:
        self._batches.append(len(batch))
        return self._engine.run(task, batch)


def expected(model: str, texts: Sequence[str]) -> Float32:
    engine = REFERENCE[model]
    return np.array(engine.run("embed", engine.tokenizer.encode(texts)))


requests = st.tuples(
    st.sampled_from(sorted(MODELS)),
    st.lists(st.sampled_from(["one", "two", "three words here"]), min_size=1, max_size=3),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(requests, min_size=1, max_size=6), min_size=1, max_size=4))
def test_models_in_one_stream_share_nothing(
    rounds: list[list[tuple[str, list[str]]]],
) -> None:
    asyncio.run(_run(rounds))


async def _run(rounds: list[list[tuple[str, list[str]]]]) -> None:
    batches: dict[str, list[int]] = {name: [] for name in MODELS}

    def load(selection: EngineSelection, *, threads: int) -> RecordingEngine:
        name = selection.spec.name
        return RecordingEngine(HashingEngine(selection.spec), batches[name])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(standalone, "load_engine", load)
        service = StandaloneService(CONFIG, list(SELECTIONS.values()), SETTINGS, "isolation")
    await service.start()
    for counts in batches.values():
        counts.clear()  # the warm-up
    transport = httpx2.ASGITransport(service.app)
    headers = {"authorization": f"Bearer {KEY}"}
    known = {name: set[str]() for name in MODELS}
    used = Counter[str]()
    async with httpx2.AsyncClient(
        transport=transport, base_url="http://test", headers=headers
    ) as client:
        for concurrent in rounds:
            replies = await asyncio.gather(
                *(
                    client.post("/v1/embeddings", json={"model": model, "input": texts})
                    for model, texts in concurrent
                )
            )
            new = {model: set(known[model]) for model in MODELS}
            for model, texts in concurrent:
                used[model] += 1
                new[model].update(texts)
            for (model, texts), reply in zip(concurrent, replies, strict=True):
                vectors = [item["embedding"] for item in reply.json()["data"]]
                np.testing.assert_allclose(vectors, expected(model, texts), atol=1e-6)
                assert reply.headers["x-embedding-space"] == SELECTIONS[model].spec.space_id
                if known[model].isdisjoint(texts):
                    # From no cache: requests of the same round may share a computation.
                    assert reply.headers["x-cache"].partition("tier=")[2] in ("", "joined")
                if known[model].issuperset(texts):
                    assert reply.headers["x-cache"].endswith("misses=0; tier=l1")
                # The quota is refilled meanwhile, so it may be higher.
                left = int(reply.headers["x-ratelimit-remaining-requests"])
                assert left >= LIMIT - used[model]
            known = new
    await service.stop()
    # Each text was computed once by its own model, whatever the other one had cached.
    assert {name: sum(counts) for name, counts in batches.items()} == {
        name: len(texts) for name, texts in known.items()
    }
