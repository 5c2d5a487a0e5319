"""Content codings: of request bodies, within a limit, and of replies, where it pays."""

import gzip
import json
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import brotli
import numpy as np
import pytest
from backports import zstd
from starlette.testclient import TestClient

from serve_app.config import IngressSettings
from serve_app.service.catalog import Catalog
from serve_app.service.embed import EmbedService
from serve_app.types import Outputs, TextGroup, Vectors
from serve_app.web.app import create_app
from tests.fakes import SPEC, FakeBackend

MAX_BYTES = 100_000
BODY = json.dumps({"input": ["a", "é", "b" * 3000]}, ensure_ascii=False).encode()


#: Without the time, which would be in the names of tests: all workers must collect the same ones.
packed_gzip = partial(gzip.compress, mtime=0)


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


CODECS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": packed_gzip,
    "x-gzip": packed_gzip,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": zstd.compress,
}


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def client(backend: FakeBackend) -> Iterator[TestClient]:
    settings = IngressSettings(max_body_bytes=MAX_BYTES)
    with TestClient(create_app(Catalog([EmbedService(SPEC, backend, settings)]))) as client:
        client.headers["accept-encoding"] = ""
        yield client


def post(client: TestClient, body: bytes, coding: str) -> Any:
    headers = {"content-type": "application/json", "content-encoding": coding}
    return client.post("/v1/embeddings", content=body, headers=headers)


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        *((coding, pack(BODY)) for coding, pack in CODECS.items()),
        ("GZIP", packed_gzip(BODY)),
        ("deflate", raw_deflate(BODY)),
        ("", BODY),
        ("identity", BODY),
        ("gzip, identity, br", brotli.compress(packed_gzip(BODY))),
        ("gzip", packed_gzip(BODY[:50]) + packed_gzip(BODY[50:])),
        ("zstd", zstd.compress(BODY[:50]) + zstd.compress(BODY[50:])),
    ],
)
def test_a_packed_body_is_the_same_request(
    client: TestClient, backend: FakeBackend, coding: str, body: bytes
) -> None:
    reply = post(client, body, coding)
    assert reply.status_code == 200, reply.text
    assert backend.groups[0].texts == ("a", "é", "b" * 3000)


@pytest.mark.parametrize("coding", CODECS)
@pytest.mark.parametrize(("size", "status"), [(MAX_BYTES, 200), (MAX_BYTES + 1, 413)])
def test_the_limit_applies_to_the_unpacked_body(
    client: TestClient, coding: str, size: int, status: int
) -> None:
    body = b'{"input": "a"' + b" " * (size - 14) + b"}"
    assert len(body) == size
    reply = post(client, CODECS[coding](body), coding)
    assert reply.status_code == status
    assert status == 200 or "unpacked body is larger than 100000 bytes" in reply.text


@pytest.mark.parametrize("coding", CODECS)
def test_a_bomb_is_not_unpacked(client: TestClient, coding: str) -> None:
    bomb = CODECS[coding](b" " * 50_000_000)
    assert len(bomb) < MAX_BYTES
    tracemalloc.start()
    try:
        assert post(client, bomb, coding).status_code == 413
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("coding", CODECS)
@pytest.mark.parametrize("fault", ["truncated", "flipped", "no such data", "more data", "empty"])
def test_broken_data_is_named(client: TestClient, coding: str, fault: str) -> None:
    packed = CODECS[coding](BODY)
    body = {
        "truncated": packed[:-4],
        "flipped": packed[:2] + bytes(byte ^ 0x55 for byte in packed[2:]),
        "no such data": BODY,
        "more data": packed + b"\xff\xff",
        "empty": b"",
    }[fault]
    reply = post(client, body, coding)
    assert reply.status_code == 400
    assert f"isn't valid {coding} data" in reply.json()["error"]["message"]


def test_frames_without_content_are_limited(client: TestClient) -> None:
    reply = post(client, packed_gzip(b"") * 3000, "gzip")
    assert (reply.status_code, "more than 64 frames" in reply.text) == (400, True)


@pytest.mark.parametrize("coding", ["compress", "gzip, x", "exi", "*", ", ".join(["gzip"] * 5)])
def test_an_unsupported_coding_is_refused(client: TestClient, coding: str) -> None:
    reply = post(client, BODY, coding)
    assert reply.status_code == 415
    assert reply.headers["accept-encoding"] == "gzip, deflate, br, zstd"


def reply_of(
    client: TestClient, accept_encoding: str, texts: int = 2048, **fields: str
) -> tuple[str | None, str, bytes]:
    """Returns `Content-Encoding`, `Vary` and the body as sent."""
    body = {"input": [f"text {i}" for i in range(texts)], **fields}
    headers = {"accept-encoding": accept_encoding}
    with client.stream("POST", "/v1/embeddings", json=body, headers=headers) as reply:
        assert reply.status_code == 200
        content = b"".join(reply.iter_raw())
        assert int(reply.headers["content-length"]) == len(content)
        return reply.headers.get("content-encoding"), reply.headers["vary"], content


UNPACK: dict[str | None, Callable[[bytes], bytes]] = {
    None: bytes,
    "gzip": gzip.decompress,
    "zstd": zstd.decompress,
}


@pytest.mark.parametrize(
    ("accept_encoding", "coding"),
    [
        ("gzip", "gzip"),
        ("GZIP;q=0.5, deflate", "gzip"),
        ("gzip, deflate, br, zstd", "zstd"),
        ("zstd;q=0.4, gzip;q=0.5", "gzip"),
        ("*", "gzip"),
        ("identity;q=0.5, gzip", "gzip"),
        ("", None),
        ("identity", None),
        ("identity, gzip;q=0.5", None),
        ("gzip;q=0", None),
        ("gzip;q=0, *", None),
        ("br, deflate", None),
    ],
)
def test_accept_encoding_is_weighed(
    client: TestClient, accept_encoding: str, coding: str | None
) -> None:
    plain = reply_of(client, "")[2]
    used, vary, body = reply_of(client, accept_encoding)
    assert (used, vary) == (coding, "accept, accept-encoding")
    assert UNPACK[coding](body) == plain
    assert coding is None or len(body) < len(plain) / 2


def test_a_small_reply_is_not_compressed(client: TestClient) -> None:
    used, vary, body = reply_of(client, "gzip", texts=8)
    assert (used, vary) == (None, "accept")
    assert len(body) < 8192


class WideBackend(FakeBackend):
    """A backend whose vectors have the size of a real model's."""

    async def run(self, group: TextGroup) -> Outputs:
        vectors = await super().run(group)
        assert isinstance(vectors, Vectors)
        random = np.random.default_rng(1).standard_normal((len(group.texts), 384))
        return replace(vectors, values=random.astype(np.float32))


@pytest.mark.parametrize(
    ("encoding_format", "accept_encoding", "coding"),
    [("float", "gzip", "gzip"), ("base64", "gzip", None), ("base64", "zstd, gzip", "zstd")],
)
def test_base64_is_compressed_with_zstd_only(
    encoding_format: str, accept_encoding: str, coding: str | None
) -> None:
    service = EmbedService(replace(SPEC, dim=384), WideBackend(), IngressSettings())
    with TestClient(create_app(Catalog([service]))) as client:
        used, _, _ = reply_of(client, accept_encoding, 64, encoding_format=encoding_format)
    assert used == coding


def test_raw_vectors_are_not_compressed(client: TestClient) -> None:
    headers = {"accept": "application/octet-stream", "accept-encoding": "gzip, zstd"}
    reply = client.post("/embed", json={"inputs": ["a"] * 2048}, headers=headers)
    assert "content-encoding" not in reply.headers
    assert reply.headers["vary"] == "accept"


@pytest.mark.parametrize("path", ["/openapi.json", "/docs"])
def test_large_pages_are_compressed(client: TestClient, path: str) -> None:
    plain = client.get(path)
    packed = client.get(path, headers={"accept-encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert int(packed.headers["content-length"]) < len(plain.content) / 3
    assert packed.content == plain.content


def test_compression_can_be_disabled(backend: FakeBackend) -> None:
    service = EmbedService(SPEC, backend, IngressSettings(compress_min_bytes=0))
    with TestClient(create_app(Catalog([service]))) as client:
        used, vary, _ = reply_of(client, "gzip, zstd")
    assert (used, vary) == (None, "accept")
