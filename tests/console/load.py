"""Sends requests to a service in the background: queries that repeat, and new bulk texts."""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2

WORDS = "cat train bank bread market lake dough rate carrot night shoe walk hour cup salt".split()
#: Texts of a query are drawn from this many, so that some come from the cache.
DISTINCT = 400
BULK_TEXTS = 24


@contextmanager
def run_load(url: str, model: str) -> Iterator[None]:
    """Sends queries and bulk requests one after the other until the block ends."""
    stop = threading.Event()
    threads = [
        threading.Thread(target=_send, args=(url, model, lane, stop))
        for lane in ("interactive", "bulk")
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _send(url: str, model: str, lane: str, stop: threading.Event) -> None:
    draw = random.Random(lane)
    with httpx2.Client(timeout=30) as client:
        while not stop.wait(0.03 if lane == "interactive" else 0.2):
            count = 1 if lane == "interactive" else BULK_TEXTS
            distinct = DISTINCT if lane == "interactive" else 1 << 62
            texts = [_text(random.Random(draw.randrange(distinct))) for _ in range(count)]
            client.post(
                f"{url}/v1/embeddings",
                json={"model": model, "input": texts},
                headers={"x-priority": lane},
            ).raise_for_status()


def _text(draw: random.Random) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(3, 30)))
