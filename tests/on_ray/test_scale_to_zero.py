"""A deployment that scales to zero: it sleeps in spite of health checks, and texts wake it up."""

import asyncio
import tempfile
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from tests.on_ray.conftest import SEPARATE, Service, running_service, service_config

#: How long a request waits for a replica that never starts.
WAKE_UP_TIMEOUT_S = 20
TIMEOUT_S = 120
SCALING = {
    "min_replicas": 0,
    "initial_replicas": 0,
    "max_replicas": 2,
    "metrics_interval_s": 1,
    "look_back_period_s": 2,
    "upscale_delay_s": 0,
    "downscale_delay_s": 0,
    "policy": {
        "policy_function": "serve_app.autoscale:TokenPolicy",
        "policy_kwargs": {"scale_to_zero_after_s": 3},
    },
}


@pytest.fixture(scope="module")
def sleeper() -> Iterator[Service]:
    with tempfile.TemporaryDirectory(prefix="es-", dir="/tmp") as scratch:
        config = service_config(SEPARATE, scratch)
        (application,) = config["applications"]
        application["args"] = {
            "models": [
                {"name": "words", "source": "hashing:8"},
                {"name": "absent", "source": "hashing:16", "deployment": "Absent"},
            ],
            "cache": {"url": "none"},
            "wake_up_timeout_s": WAKE_UP_TIMEOUT_S,
        }
        embedder = application["deployments"][-1]
        embedder |= {"ray_actor_options": {"num_cpus": 0.5}, "autoscaling_config": SCALING}
        # No node has these CPUs, so the replica that a request asks for never starts.
        application["deployments"].append(
            {
                **embedder,
                "name": "Absent",
                "ray_actor_options": {"num_cpus": 10_000},
                "graceful_shutdown_timeout_s": 1,
            }
        )
        with running_service(SEPARATE, config, scratch) as service:
            yield service


def embed(service: Service, *texts: str, model: str = "words") -> httpx2.Response:
    body = {"model": model, "input": texts}
    return httpx2.post(f"{service.url}/v1/embeddings", json=body, timeout=TIMEOUT_S)


def status(service: Service, path: str) -> dict[str, Any]:
    reply = httpx2.get(f"{service.url}{path}", params={"model": "words"}, timeout=TIMEOUT_S)
    assert reply.status_code == 200, reply.text
    content: dict[str, Any] = reply.json()
    return content


def wait_until_asleep(service: Service) -> None:
    """Waits while a load balancer's health checks come."""
    deadline = time.monotonic() + TIMEOUT_S
    while not (asleep := status(service, "/health").get("asleep")):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert asleep
    assert service.running_replicas("Embedder") == 0


async def test_a_model_sleeps_and_wakes_up_and_nothing_is_lost(sleeper: Service) -> None:
    with ThreadPoolExecutor(40) as threads:
        absent = threads.submit(embed, sleeper, "text", model="absent")

        wait_until_asleep(sleeper)
        for _ in range(3):
            status(sleeper, "/health")
            assert status(sleeper, "/info")["asleep"]
        await asyncio.sleep(2)
        assert sleeper.running_replicas("Embedder") == 0

        # Many requests wait together, those of other routes too.
        requests = [threads.submit(embed, sleeper, f"text {i}") for i in range(30)]
        tokens = threads.submit(
            httpx2.post, f"{sleeper.url}/tokenize", json={"inputs": "two words"}, timeout=TIMEOUT_S
        )
        replies = [request.result() for request in requests]
        assert [reply.status_code for reply in replies] == [200] * 30, replies
        assert tokens.result().status_code in (200, 422)  # 422: hashing has no tokenizer
        assert "asleep" not in status(sleeper, "/health")
        assert sleeper.running_replicas("Embedder") == 1

        # Requests that come just when the last replica leaves are computed.
        for pause_s in (3.0, 3.6, 4.2):
            await asyncio.sleep(pause_s)
            reply = await asyncio.to_thread(embed, sleeper, f"text after {pause_s} s")
            assert reply.status_code == 200, reply.text

        reply = absent.result()
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "unavailable")
        assert int(reply.headers["retry-after"]) >= 1

    wait_until_asleep(sleeper)


def test_a_call_over_a_handle_wakes_it_up(sleeper: Service) -> None:
    wait_until_asleep(sleeper)
    code = """
    import ray
    from ray import serve
    ray.init(log_to_driver=False)
    handle = serve.get_app_handle("embedserve")
    print("SHAPE", handle.embed.remote(["one", "two"], model="words").result(timeout_s=100).shape)
    """
    assert "SHAPE (2, 8)" in sleeper.run_driver(textwrap.dedent(code))
