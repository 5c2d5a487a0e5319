"""Models for which others stand in: while their deployment is absent or hangs, and as an alias."""

import os
import re
import signal
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import numpy as np
import pytest

from tests.on_ray.conftest import SEPARATE, Service, running_service, service_config

AFTER_S = 0.5
#: A test fails if the deadline of a request is waited for.
DEADLINE_S = 60
SOURCE = "hashing:64"
MODELS = [
    {"name": "second", "source": SOURCE},
    {"name": "absent", "deployment": "Absent"},
    {"name": "stopped", "deployment": "Stopped"},
]
OTHER = {"name": "other", "source": "hashing:32"}
#: Takes a minimum of time for each batch, so that a burst is more than it computes in its time.
SLOW_BATCH_S = 0.05
SLOW: dict[str, Any] = {
    "name": "slow",
    "deployment": "Stopped",
    "batch_cost": {"fixed_s": SLOW_BATCH_S, "token_s": 0.002},
    "spill_over_after_s": 0.2,
}
BURST = 40
ALIAS = {
    "name": "words",
    "model": "second",
    "canary": {"model": "other", "share": 0},
    "shadow": {"model": "other", "share": 1},
}


@pytest.fixture(scope="module")
def chained() -> Iterator[Service]:
    with tempfile.TemporaryDirectory(prefix="es-", dir="/tmp") as scratch:
        config = service_config(SEPARATE, scratch)
        (application,) = config["applications"]
        chain = {"source": SOURCE, "fallback": ["second"], "fallback_after_s": AFTER_S}
        application["args"] |= {
            "models": [MODELS[0], OTHER, *(m | chain for m in (*MODELS[1:], SLOW))],
            "aliases": [ALIAS],
        }
        application["args"].pop("model", None)
        embedder = application["deployments"][-1]
        embedder["ray_actor_options"] = {"num_cpus": 0.5}
        # No node has these CPUs, so a replica that a request asks for never starts.
        absent = {"min_replicas": 0, "initial_replicas": 0, "max_replicas": 1}
        application["deployments"] += [
            {**embedder, "name": "Stopped"},
            {
                **embedder,
                "name": "Absent",
                "ray_actor_options": {"num_cpus": 10_000},
                "autoscaling_config": embedder["autoscaling_config"] | absent,
                "graceful_shutdown_timeout_s": 1,  # of the replica that never starts
            },
        ]
        with running_service(SEPARATE, config, scratch) as service:
            yield service


def embed(
    service: Service, model: str, *texts: str, headers: dict[str, str] | None = None
) -> httpx2.Response:
    body = {"model": model, "input": texts}
    reply = httpx2.post(
        f"{service.url}/v1/embeddings", json=body, headers=headers, timeout=DEADLINE_S
    )
    assert reply.status_code == 200, reply.text
    assert reply.json()["model"] == model
    return reply


def infer_s(reply: httpx2.Response) -> float:
    """Returns the time of the model's batches, from the header `server-timing`."""
    (duration_ms,) = re.findall(r"infer;dur=([\d.]+)", reply.headers["server-timing"])
    return float(duration_ms) / 1000


def vectors(reply: httpx2.Response) -> Any:
    return np.array([item["embedding"] for item in reply.json()["data"]])


def test_an_absent_deployment_is_left_out(chained: Service) -> None:
    expected = vectors(embed(chained, "second", "a text"))
    reply = embed(chained, "absent", "a text")
    assert np.array_equal(vectors(reply), expected)
    assert reply.headers["x-cache"].startswith("hits=1")
    started_s = time.monotonic()
    for i in range(20):
        reply = embed(chained, "absent", f"text {i}")
        assert reply.headers["x-cache"] == "hits=0; misses=1"
        other = embed(chained, "second", f"text {i}")
        assert other.headers["x-cache"].startswith("hits=1")
        assert np.array_equal(vectors(other), vectors(reply))
    assert time.monotonic() - started_s < DEADLINE_S
    # Neither does a call that bypasses the cache wait for it: the other engine has no tokenizer.
    tokens = {"model": "absent", "inputs": "two words"}
    reply = httpx2.post(f"{chained.url}/tokenize", json=tokens, timeout=DEADLINE_S)
    assert reply.status_code == 422, reply.text
    health = chained.health()
    assert health["status"] == "degraded"
    assert health["fallbacks"]["absent"]["status"] == "failing"
    assert health["fallbacks"]["stopped"]["status"] == "ok"


def test_a_deployment_that_hangs_is_left_out_until_it_answers(chained: Service) -> None:
    embed(chained, "stopped", "a first text")
    pids = chained.replica_pids("Stopped")
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        for i in range(5):
            reply = embed(chained, "stopped", f"another text {i}")
            assert reply.headers["x-cache"] == "hits=0; misses=1"
        assert chained.health()["fallbacks"]["stopped"]["status"] == "failing"
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    deadline = time.monotonic() + DEADLINE_S
    while chained.health()["fallbacks"]["stopped"]["status"] != "ok":
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_burst_spills_over_to_the_second_deployment(chained: Service) -> None:
    def spilled() -> float:
        return sum(chained.counts("embedserve_spilled_texts").values())

    for i in range(4):
        reply = embed(chained, "slow", f"a text without load {i}")
        assert infer_s(reply) >= SLOW_BATCH_S  # the first deployment computed it
    texts, replies = list[str](), list[httpx2.Response]()
    deadline = time.monotonic() + 2 * DEADLINE_S  # Ray reports speeds each ten seconds
    with ThreadPoolExecutor(BURST) as pool:
        while not spilled():
            assert time.monotonic() < deadline
            burst = [f"text {len(texts) + i} of a burst " + "word " * 20 for i in range(BURST)]
            replies += pool.map(lambda text: embed(chained, "slow", text), burst)
            texts += burst
    assert spilled() < len(texts)
    expected = embed(chained, "second", *texts, headers={"cache-control": "no-store"})
    assert expected.headers["x-cache"].startswith("hits=0")
    assert np.array_equal(np.concatenate([*map(vectors, replies)]), vectors(expected))
    assert chained.health()["fallbacks"]["slow"]["status"] == "ok"
    info = httpx2.get(f"{chained.url}/info?model=slow", timeout=DEADLINE_S).json()
    assert (info["fallback"], info["spill_over_after_s"]) == (["second"], 0.2)


def test_an_alias_compares_its_models_and_keeps_clients_in_their_space(chained: Service) -> None:
    texts = [f"{word} {i}" for i in range(20) for word in ("red", "blue")]
    spaces = {
        info["name"]: info["space"]
        for info in httpx2.get(f"{chained.url}/info", timeout=DEADLINE_S).json()["models"]
    }
    for model in ("second", "other"):
        headers = {"x-embedding-space": spaces[model]}
        reply = httpx2.post(
            f"{chained.url}/v1/embeddings",
            json={"model": "words", "input": texts},
            headers=headers,
            timeout=DEADLINE_S,
        )
        assert (reply.status_code, reply.json()["model"]) == (200, model)
        assert reply.headers["x-embedding-space"] == spaces[model]
    deadline = time.monotonic() + DEADLINE_S
    while True:
        reply = httpx2.get(f"{chained.url}/shadow", timeout=DEADLINE_S)
        (report,) = reply.json()["shadows"]
        if report["kept"] is not None and report["outcomes"].get("compared") == len(texts):
            break
        assert time.monotonic() < deadline, report
        time.sleep(0.1)
    assert report["shadow"]["space"] == spaces["other"]
    assert report["sample_texts"] == len(texts)
