"""The HTTP application on a free port, over a hashing engine: no Ray and no model."""

import asyncio
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import uvicorn
from starlette.types import ASGIApp
from tokenizers import Tokenizer

from serve_app.config import MINILM, IngressSettings, ModelConfig
from serve_app.engines.hashing_engine import HashingEngine
from serve_app.engines.tokenizer import Padding, TextTokenizer
from serve_app.model_prep.quantization_ranges import hashing_quantization_ranges
from serve_app.models import model_dir, resolve
from serve_app.service.catalog import Catalog
from serve_app.service.embed import EmbedService
from serve_app.types import CacheState, EngineInfo, Float32, TextGroup, Tier, Vectors
from serve_app.web.app import create_app
from tests.fakes import FakeBackend

#: Clients refuse to start without a key; the application requires none.
KEY = "none"
MODEL = "org/hashing"
DIM = 64
MAX_TOKENS = 32
#: Distinct, so that a query, a document and a text without a prompt have different vectors.
PROMPTS = {"query": "query: ", "document": "passage: "}
SPEC = replace(
    resolve(
        ModelConfig(
            name=MODEL, aliases=("hashing",), source=f"hashing:{DIM}", max_tokens=MAX_TOKENS
        )
    ),
    prompts=PROMPTS,
    quantization_ranges=hashing_quantization_ranges(DIM),
)
_ENGINE = HashingEngine(SPEC)

#: More than one batch for a client with a batch size of two; the fourth repeats the first.
TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind.",
    "Zürich liegt am See; 北京 does not. Neither does the fox of the first text.",
    'A line\nand another one, with "quotes" and a \\ in it, so that something is escaped.',
    "The quick brown fox jumps over the lazy dog, and the dog does not mind.",
    "word",
]


def expected_vectors(*texts: str, prompt: str = "") -> Float32:
    """Returns the exact vectors that the application serves; shape (n, DIM)."""
    prefix = PROMPTS.get(prompt, "")
    return _ENGINE.run("embed", _ENGINE.tokenizer.encode([prefix + text for text in texts]))


def equal_vectors(actual: object, expected: Float32) -> bool:
    """Whether a client's vectors are equal to `expected` in every bit of float32."""
    return np.array_equal(np.array(actual, dtype=np.float32), expected)


def token_count(*texts: str, prompt: str = "") -> int:
    """Returns the number of tokens of all texts, one for each word."""
    prefix = PROMPTS.get(prompt, "")
    encoded = _ENGINE.tokenizer.encode([prefix + text for text in texts])
    return sum(len(tokens.ids) for tokens in encoded)


@cache
def _minilm_tokenizer() -> TextTokenizer:
    tokenizer = Tokenizer.from_file(str(model_dir(MINILM) / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_TOKENS)
    return TextTokenizer(tokenizer, Padding(0, left=False, inputs=("input_ids",)))


class HashingBackend(FakeBackend):
    """A backend that embeds with a hashing engine, or fails with `error`.

    It rejects foreign token ids as a real model does; a hashing engine rejects all token ids.
    """

    async def run(self, group: TextGroup) -> Vectors:
        _minilm_tokenizer().encode([ids for ids in group.texts if isinstance(ids, tuple)])
        self.groups.append(group)
        if self.error is not None:
            raise self.error
        tokens = _ENGINE.tokenizer.encode(group.prompted_inputs)
        return Vectors(
            values=_ENGINE.run("embed", tokens),
            token_counts=np.array([len(t.ids) for t in tokens], dtype=np.int32),
            truncated=np.array([t.truncated for t in tokens]),
            tiers=np.full(len(tokens), Tier.COMPUTED, dtype=np.uint8),
        )

    async def describe(self) -> EngineInfo:
        return _ENGINE.info

    async def cache_state(self) -> CacheState:
        return CacheState("off")


@dataclass(frozen=True)
class AppServer:
    """A running application: its address, its service and its backend."""

    url: str
    service: EmbedService
    backend: HashingBackend


@contextmanager
def run_app_server() -> Iterator[AppServer]:
    """Serves the application on a free port of the loopback interface."""
    backend = HashingBackend()
    service = EmbedService(SPEC, backend, IngressSettings())
    with run_server(create_app(Catalog([service]))) as url:
        yield AppServer(url, service, backend)


async def _nothing() -> None:
    pass


@contextmanager
def run_server(
    app: ASGIApp,
    start: Callable[[], Awaitable[None]] = _nothing,
    stop: Callable[[], Awaitable[None]] = _nothing,
    port: int = 0,
) -> Iterator[str]:
    """Serves an application on a port of the loopback interface, a free one for 0; yields the URL.

    `start` and `stop` run on the event loop of the application.
    """
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", ws="none", log_level="warning"))

    async def serve() -> None:
        await start()
        try:
            await server.serve([listener])
        finally:
            await stop()

    with socket.create_server(("127.0.0.1", port)) as listener:
        thread = threading.Thread(target=lambda: asyncio.run(serve()))
        thread.start()
        try:
            deadline = time.monotonic() + 30
            while not server.started:
                assert thread.is_alive()
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()
