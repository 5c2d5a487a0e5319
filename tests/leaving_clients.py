"""Measures what a running service computes for clients that leave before the response.

leaving and staying clients → the service's counters of computed texts, less the answered texts
"""

import asyncio
import json
import math
import random
import re
import socket
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx2

SIZES = (100, 1_000, 15_000, 100_000)  #: bytes of a body
_WORDS = "abcdefghijklmnopqrstuvwxyz"  # one token each: short bodies that take long to compute
_TEXT_BYTES = 500
#: Longest pause after a segment, and before the client leaves.
_MAX_PAUSE_S = 0.1
_LEAVING_AT_ONCE = 8
_STAYING = 2
_TEXTS_PER_ANSWER = 4
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: closing sends RST instead of FIN


class LeavingClient(NamedTuple):
    """What a client sends before it leaves."""

    segments: list[bytes]  #: the first one is the header, unless header and body are one
    pauses_s: list[float]  #: after each segment
    texts: int
    complete: bool  #: whether the segments are the whole request
    resets: bool  #: whether it resets the connection instead of closing it


class Counters(NamedTuple):
    """Metrics of the engine, summed over all replicas."""

    texts: float
    tokens: float
    batches: float
    seconds: float
    budget_tokens: float  #: padded tokens that a batch may hold now


@dataclass
class Phase:
    """What was computed while clients of one kind came and left."""

    name: str
    clients: int
    sent: int  #: texts of the clients that left
    computed: int  #: texts that were computed and not answered
    allowed: int  #: texts in the batches that a client that left may have been part of

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.clients} clients left with {self.sent} texts, of which "
            f"{self.computed} were computed; at most {self.allowed} may be"
        )


def leaving_client(seed: int, number: int, size: int, *, complete: bool, run: str) -> LeavingClient:
    """Returns client number `number` with a body of about `size` bytes.

    Args:
        seed: decides with `number` what the client sends.
        number: number of the client.
        size: size of the body in bytes.
        complete: whether the client sends all of its request.
        run: makes the texts new, so that no cache holds them.
    """
    rng = random.Random(f"leaving/{seed}/{number}/{size}")
    texts = _texts(rng, f"{run} {number} {size}", size)
    body = json.dumps({"input": texts}).encode()
    head = (
        "POST /v1/embeddings HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()
    cuts = sorted(rng.randrange(1, len(body)) for _ in range(rng.choice([0, 0, 0, 1, 2, 3])))
    bounds = [0, *cuts, len(body)]
    segments = [head, *(body[a:b] for a, b in pairwise(bounds))]
    if not complete:
        segments = segments[: rng.randrange(1, len(segments))]
    pauses_s = [rng.uniform(0, _MAX_PAUSE_S) for _ in segments]
    if rng.random() < 0.7:
        pauses_s[-1] = 0
    return LeavingClient(segments, pauses_s, len(texts), complete, rng.random() < 0.2)


def _texts(rng: random.Random, name: str, size: int) -> list[str]:
    """Returns texts of equal length that make a body of about `size` bytes."""
    count = max(1, size // _TEXT_BYTES)
    texts = [
        f"{name} {i} " + " ".join(rng.choices(_WORDS, k=_TEXT_BYTES // 2)) for i in range(count)
    ]
    return [text[: min(_TEXT_BYTES, size)] for text in texts]


async def leave(host: str, port: int, client: LeavingClient) -> None:
    """Sends what a client sends, and closes the connection without reading."""
    _, writer = await asyncio.open_connection(host, port)
    with suppress(OSError):
        for segment, pause_s in zip(client.segments, client.pauses_s, strict=True):
            writer.write(segment)
            await writer.drain()
            await asyncio.sleep(pause_s)
    if client.resets:
        connection: socket.socket = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


async def measure(url: str, clients: int, seed: int, *, export_s: float = 15) -> list[Phase]:
    """Lets clients leave a service that has no other clients; returns what was computed.

    Half of the clients leave before their request is complete. The others leave up to 100 ms after
    its end, one phase for each size of the body.

    Args:
        url: a running service.
        clients: number of clients in all phases.
        seed: decides with the number of a client what it sends.
        export_s: longer than a count takes to appear in `/metrics`.
    """
    run = str(time.time_ns())
    numbers = range(max(1, clients // (2 * len(SIZES))))
    incomplete = [
        leaving_client(seed, number, size, complete=False, run=run)
        for number in numbers
        for size in SIZES
    ]
    phases = [("incomplete requests", incomplete)]
    for size in SIZES:
        complete = [
            leaving_client(seed, number, size, complete=True, run=f"{run}c") for number in numbers
        ]
        phases.append((f"requests of {size} bytes", complete))
    results = []
    async with httpx2.AsyncClient(base_url=url, timeout=60) as http:
        before = await _settled_counters(http, export_s)
        for name, leaving in phases:
            answered = await _run_clients(http, url, leaving)
            after = await _settled_counters(http, export_s)
            results.append(_phase(name, leaving, answered, before, after))
            before = after
    return results


def _phase(
    name: str, leaving: Sequence[LeavingClient], answered: int, before: Counters, after: Counters
) -> Phase:
    computed = round(after.texts - before.texts)
    batches = max(1.0, after.batches - before.batches)
    batch_s = (after.seconds - before.seconds) / batches
    tokens_per_text = (after.tokens - before.tokens) / max(1, computed)
    batch_texts = math.ceil(max(before.budget_tokens, after.budget_tokens) / tokens_per_text)
    allowed = sum(_allowed(client, batch_texts, batch_s) for client in leaving)
    sent = sum(client.texts for client in leaving)
    return Phase(name, len(leaving), sent, computed - answered, allowed)


def _allowed(client: LeavingClient, batch_texts: int, batch_s: float) -> int:
    """Returns how many texts of a client may be computed: until it leaves, and one more batch."""
    if not client.complete:
        return 0
    batches = 1 + math.ceil(client.pauses_s[-1] / batch_s)
    return min(client.texts, batches * batch_texts)


async def _run_clients(http: httpx2.AsyncClient, url: str, leaving: Sequence[LeavingClient]) -> int:
    """Runs leaving clients next to staying ones; returns the number of answered texts."""
    parts = urlsplit(url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    remaining, stop = iter(leaving), asyncio.Event()
    answered = 0

    async def leave_one_after_another() -> None:
        for client in remaining:
            await leave(host, port, client)

    async def stay(number: int) -> None:
        nonlocal answered
        while not stop.is_set():
            name = f"{time.time_ns()} {number}"
            texts = _texts(random.Random(name), name, _TEXTS_PER_ANSWER * _TEXT_BYTES)
            response = await http.post("/v1/embeddings", json={"input": texts})
            response.raise_for_status()
            answered += len(response.json()["data"])

    staying = [asyncio.create_task(stay(number)) for number in range(_STAYING)]
    await asyncio.gather(*(leave_one_after_another() for _ in range(_LEAVING_AT_ONCE)))
    stop.set()
    await asyncio.gather(*staying)
    return answered


async def _settled_counters(http: httpx2.AsyncClient, export_s: float) -> Counters:
    """Returns the counters once they have not changed for longer than their export takes."""
    counters, since = await _counters(http), time.monotonic()
    while time.monotonic() - since < export_s:
        await asyncio.sleep(1)
        read = await _counters(http)
        if read != counters:
            counters, since = read, time.monotonic()
    return counters


async def _counters(http: httpx2.AsyncClient) -> Counters:
    response = await http.get("/metrics")
    response.raise_for_status()

    def total(name: str) -> float:
        values = re.findall(
            rf"^ray_embedserve_{name}(?:{{.*}})? (\S+)$", response.text, re.MULTILINE
        )
        return sum(map(float, values))

    return Counters(
        total("batch_size_texts_sum"),
        total("text_length_tokens_sum"),
        total("batch_size_texts_count"),
        total("batch_duration_seconds_sum"),
        total("budget_tokens"),
    )
