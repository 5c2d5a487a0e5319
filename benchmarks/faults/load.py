"""A steady mixed load: several APIs, queries and documents, cached and computed texts."""

import asyncio
import itertools
import random
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Self

import httpx2
import numpy as np

from serve_app.types import Float32

from .apis import APIS, Api
from .ledger import Kind, Ledger
from .reply_check import Reply, ReplyCheck

#: A client asks for an answer within this time, and waits a little longer for it.
DEADLINE_S = 20.0
LOST_AFTER_S = 30.0
_DOCUMENTS_SHARE, _DOCUMENT_TEXTS = 0.3, 8
_NO_STORE_SHARE = 0.5
_BULK_SHARE = 0.5
_CLIENTS = 64
_REFERENCE_BATCH = 64
_POLL_S = 0.02
_WORDS = ("harbor", "cedar", "violin", "glacier", "market", "copper", "lantern", "meadow", "engine")


class Call(NamedTuple):
    """A request before it is sent."""

    api: Api
    texts: Sequence[int]  #: their indexes
    headers: Mapping[str, str]
    unknown: Sequence[str] = ()  #: further texts, whose vectors nobody knows


def make_texts(count: int, seed: int) -> list[str]:
    """Returns distinct texts of 3 to 40 words."""
    rng = random.Random(f"faults/{seed}")
    return [
        f"text {i}: " + " ".join(rng.choices(_WORDS, k=rng.randint(3, 40))) for i in range(count)
    ]


def make_calls(text_count: int, seed: int) -> Iterator[Call]:
    """Yields calls without end: queries of one text, and documents of several."""
    rng = random.Random(f"calls/{seed}")
    for number in itertools.count():
        is_query = rng.random() >= _DOCUMENTS_SHARE
        texts = rng.sample(range(text_count), 1 if is_query else _DOCUMENT_TEXTS)
        headers = {}
        if rng.random() < _NO_STORE_SHARE:
            headers["cache-control"] = "no-store"
        if not is_query and rng.random() < _BULK_SHARE:
            headers["x-priority"] = "bulk"
        yield Call(APIS[number % len(APIS)], texts, headers)


def fetch_references(url: str, api_key: str, texts: Sequence[str]) -> tuple[Float32, str]:
    """Returns the vectors of texts, of shape (texts, dim), and their space.

    The service computes them without its cache.

    Raises:
        httpx2.HTTPError: the service doesn't answer, or answers with an error.
    """
    api = APIS[0]
    rows, space = [], ""
    headers = {"authorization": f"Bearer {api_key}", "cache-control": "no-store"}
    with httpx2.Client(base_url=url, headers=headers, timeout=120) as client:
        for start in range(0, len(texts), _REFERENCE_BATCH):
            body = api.body(texts[start : start + _REFERENCE_BATCH])
            response = client.post(api.path, json=body).raise_for_status()
            rows += api.vectors(response.json())
            space = response.headers["x-embedding-space"]
    return np.array(rows, np.float32), space


class Load:
    """Sends calls at a constant rate in a thread, whether or not earlier ones have ended.

    A client that is refused with `Retry-After` waits that long and sends the request again, until
    its deadline: the ledger counts one request, with the last reply. It repeats nothing else.
    """

    def __init__(
        self,
        url: str,
        api_key: str,
        texts: Sequence[str],
        check: ReplyCheck,
        rate: float,
        seed: int,
        *,
        calls: Iterator[Call] | None = None,
        max_open: int | None = None,
    ) -> None:
        """A load that hasn't started.

        Args:
            url: of the service.
            api_key: a key of the service.
            texts: texts whose vectors the check knows.
            check: judges the replies.
            rate: requests per second.
            seed: decides which calls are sent.
            calls: what is sent, without end; None: the calls of `make_calls`.
            max_open: requests that have not ended, at most; None: no limit.
        """
        self.ledger = Ledger()
        self.sent_texts = 0
        self._url, self._api_key = url, api_key
        self._texts, self._check = texts, check
        self._rate = rate
        self._extra = 0
        self._max_open = max_open
        self._calls = make_calls(len(texts), seed) if calls is None else calls
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run_loop, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopped.set()
        self._thread.join(LOST_AFTER_S + 10)
        self.ledger.give_up(time.monotonic())

    def send_at_once(self, requests: int) -> None:
        """Sends further requests without waiting for the time at which the next one is due."""
        self._extra = requests

    def set_rate(self, rate: float) -> None:
        """Changes the number of requests per second; 0 pauses the load."""
        self._rate = rate

    def _run_loop(self) -> None:
        asyncio.run(self._run())

    async def _run(self) -> None:
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=_CLIENTS)
        headers = {"authorization": f"Bearer {self._api_key}"}
        tasks: set[asyncio.Task[None]] = set()
        async with httpx2.AsyncClient(
            base_url=self._url, headers=headers, limits=limits, timeout=None
        ) as client:
            due_s = time.monotonic()
            while not self._stopped.is_set():
                if self._rate == 0 or len(tasks) == self._max_open:
                    await asyncio.sleep(_POLL_S)
                    due_s = time.monotonic()
                    continue
                extra, self._extra = self._extra, 0
                for _ in range(1 + extra):
                    task = asyncio.create_task(self._send(client, next(self._calls)))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
                due_s += 1 / self._rate
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            await asyncio.gather(*tasks)

    async def _send(self, client: httpx2.AsyncClient, call: Call) -> None:
        request_id = uuid.uuid4().hex
        started_s = time.monotonic()
        self.ledger.open(request_id, started_s)
        self.sent_texts += len(call.texts) + len(call.unknown)
        attempts = 0
        while True:
            attempts += 1
            kind, detail, retry_after_s = await self._attempt(client, call, request_id, started_s)
            left_s = started_s + DEADLINE_S - time.monotonic()
            if retry_after_s is None or retry_after_s >= left_s:
                break
            await asyncio.sleep(retry_after_s)
        self.ledger.close(request_id, time.monotonic(), kind, detail, attempts)

    async def _attempt(
        self, client: httpx2.AsyncClient, call: Call, request_id: str, started_s: float
    ) -> tuple[Kind, str, float | None]:
        """Returns how an attempt ended, and after how long it may be repeated."""
        deadline_s = max(0.1, started_s + DEADLINE_S - time.monotonic())
        try:
            async with asyncio.timeout_at(
                asyncio.get_running_loop().time() + started_s + LOST_AFTER_S - time.monotonic()
            ):
                response = await client.post(
                    call.api.path,
                    json=call.api.body([*(self._texts[i] for i in call.texts), *call.unknown]),
                    headers={
                        **call.headers,
                        "x-request-id": request_id,
                        "x-request-timeout-s": f"{deadline_s:.2f}",
                    },
                )
        except TimeoutError:
            return Kind.LOST, f"no reply within {LOST_AFTER_S:.0f} s", None
        except httpx2.HTTPError as error:
            return Kind.FAILED, type(error).__name__, None
        reply = Reply(response.status_code, response.headers, response.content)
        kind, detail = self._check.judge(call.api, call.texts, reply, len(call.unknown))
        return kind, detail, reply.retry_after_s if kind is Kind.REFUSED else None
