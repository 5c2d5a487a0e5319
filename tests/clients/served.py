"""The HTTP application on a real port, with neither Ray nor a model."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import uvicorn
from tokenizers import Tokenizer

from serve_app.config import MINILM, IngressSettings, ModelConfig
from serve_app.engines.hashing_engine import HashingEngine
from serve_app.engines.tokenizer import Padding, TextTokenizer
from serve_app.errors import EmbedServeError
from serve_app.model_prep.quantization_ranges import hashing_quantization_ranges
from serve_app.models import model_dir, resolve
from serve_app.service.embed import EmbedService
from serve_app.types import CacheState, EngineInfo, Float32, TextGroup, Tier, Vectors
from serve_app.web.app import create_app
from tests.fakes import FakeBackend

#: Any will do, as long as the service asks for none.
KEY = "none"
MODEL = "org/hashing"
DIM = 64
MAX_TOKENS = 32
#: So that a query's vector is not that of a document, and both not that of the bare text.
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


def _refuse_foreign_ids(group: TextGroup) -> None:
    """As an Embedder of a real model does; a hashing engine would refuse all of them."""
    tokenizer = Tokenizer.from_file(str(model_dir(MINILM) / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_TOKENS)
    reading = TextTokenizer(tokenizer, Padding(0, left=False, inputs=("input_ids",)))
    reading.encode([given for given in group.texts if isinstance(given, tuple)])


#: More than any client sends at once when it is told to send two; one of them comes twice.
TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind.",
    "Zürich liegt am See; 北京 does not. Neither does the fox of the first text.",
    'A line\nand another one, with "quotes" and a \\ in it, so that something is escaped.',
    "The quick brown fox jumps over the lazy dog, and the dog does not mind.",
    "word",
]


def vectors(*texts: str, prompt: str = "") -> Float32:
    """What the service has to answer, to the last bit; shape (n, DIM)."""
    return _ENGINE.embed(_ENGINE.tokenizer.encode([PROMPTS.get(prompt, "") + text for text in texts]))


def same(got: object, expected: Float32) -> bool:
    """Whether a client's numbers are these, to the last bit of a float32."""
    return np.array_equal(np.array(got, dtype=np.float32), expected)


def words(*texts: str, prompt: str = "") -> int:
    """What the service counts as tokens: a hashing engine's are words."""
    prompted = [PROMPTS.get(prompt, "") + text for text in texts]
    return sum(len(tokens.ids) for tokens in _ENGINE.tokenizer.encode(prompted))


class HashingLookup(FakeBackend):
    """The tiers behind the service: an engine, and on demand a fault."""

    def __init__(self) -> None:
        super().__init__()
        self.error: EmbedServeError | None = None  #: raised for every group
        self.groups: list[TextGroup] = []

    async def embed(self, group: TextGroup) -> Vectors:
        _refuse_foreign_ids(group)
        self.groups.append(group)
        if self.error is not None:
            raise self.error
        tokens = _ENGINE.tokenizer.encode(group.prompted_inputs)
        return Vectors(
            values=_ENGINE.embed(tokens),
            token_counts=np.array([len(t.ids) for t in tokens], dtype=np.int32),
            truncated=np.array([t.truncated for t in tokens]),
            tiers=np.full(len(tokens), Tier.COMPUTED, dtype=np.uint8),
        )

    async def describe(self) -> EngineInfo:
        return _ENGINE.info

    async def cache_state(self) -> CacheState:
        return CacheState("off")


class Served:
    """Where the application listens, and what stands behind it."""

    def __init__(self, url: str, service: EmbedService, lookup: HashingLookup) -> None:
        self.url = url
        self.service = service
        self.lookup = lookup


@contextmanager
def serve() -> Iterator[Served]:
    """The application, on a free port of the loopback interface."""
    lookup = HashingLookup()
    service = EmbedService(SPEC, lookup, IngressSettings())
    app = create_app(service)
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", ws="none", log_level="warning"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
        thread.start()
        try:
            deadline = time.monotonic() + 30
            while not server.started:
                assert thread.is_alive()
                assert time.monotonic() < deadline
                time.sleep(0.01)
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            yield Served(url, service, lookup)
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()
