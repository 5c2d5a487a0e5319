"""Queries and a request that is larger than the queue, next to each other."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx2

from tests.on_ray.conftest import EVERYWHERE, USER_CONFIG, Service

QUERY_CLIENTS = 4


def large_request() -> list[str]:
    """Returns texts of more than 120 tokens each, a quarter more than fit into the queue."""
    count = int(1.25 * USER_CONFIG["Embedder"]["max_queued_tokens"]) // 120
    return [f"{time.time_ns()} text {i} " + "some more words " * 40 for i in range(count)]


@contextmanager
def query_clients(service: Service, statuses: list[int]) -> Iterator[None]:
    """Runs clients that send one query after another and record the statuses."""
    stop = threading.Event()

    def run(number: int) -> None:
        with httpx2.Client(base_url=service.url, timeout=60) as client:
            while not stop.is_set():
                query = f"query {time.time_ns()} of client {number}"
                statuses.append(client.post("/v1/embeddings", json={"input": query}).status_code)

    with ThreadPoolExecutor(QUERY_CLIENTS) as pool:
        futures = [pool.submit(run, number) for number in range(QUERY_CLIENTS)]
        try:
            yield
        finally:
            stop.set()
        for future in futures:
            future.result()


@EVERYWHERE
def test_a_request_larger_than_the_queue_is_served_next_to_queries(service: Service) -> None:
    statuses: list[int] = []
    texts = large_request()
    with query_clients(service, statuses):
        while len(statuses) < 2 * QUERY_CLIENTS:
            time.sleep(0.01)
        before = len(statuses)
        reply = httpx2.post(f"{service.url}/v1/embeddings", json={"input": texts}, timeout=150)
        during = len(statuses) - before
    assert reply.status_code == 200, reply.text
    assert len(reply.json()["data"]) == len(texts)
    assert during > 2 * QUERY_CLIENTS
    assert set(statuses) == {200}
