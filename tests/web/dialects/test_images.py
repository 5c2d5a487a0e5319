"""Images in the requests of all dialects, and the checks before they are decoded."""

import base64
import io
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import httpx2
import PIL.Image
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from starlette.testclient import TestClient

from serve_app.config import IngressSettings
from serve_app.inputs import Image
from serve_app.meter import Meter
from serve_app.metrics import IMAGE_FETCHES
from serve_app.service.catalog import Catalog
from serve_app.service.embed import EmbedService
from serve_app.web.app import create_app
from tests.fakes import SPEC, FakeBackend
from tests.image_server import ImageServer, image_server

CLIP = replace(SPEC, tasks=("embed", "embed_images"))
LIMITS = IngressSettings(max_image_bytes=2000, max_image_pixels=64)


def image_file(format_: str, width: int = 4, height: int = 2) -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (width, height)).save(file, format_)
    return file.getvalue()


def data_uri(data: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


PNG = image_file("PNG")


@pytest.fixture
def lookup() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def client(lookup: FakeBackend) -> Iterator[TestClient]:
    app = create_app(Catalog([EmbedService(CLIP, lookup, LIMITS)]))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


class Format(NamedTuple):
    """A request format that returns the vector of an image."""

    path: str
    body: Callable[[str], dict[str, Any]]
    vector: Callable[[Any], Any]  #: reads the vector from the reply


_COHERE = {"model": "fake", "input_type": "image"}
FORMATS = {
    "jina": Format(
        "/v1/embeddings",
        lambda uri: {"input": [{"image": uri}]},
        lambda r: r["data"][0]["embedding"],
    ),
    "nim": Format(
        "/v1/embeddings",
        lambda uri: {"input": [uri], "modality": "image"},
        lambda r: r["data"][0]["embedding"],
    ),
    "infinity": Format(
        "/embeddings",
        lambda uri: {"input": uri, "modality": "image"},
        lambda r: r["data"][0]["embedding"],
    ),
    "cohere": Format(
        "/v2/embed",
        lambda uri: {**_COHERE, "images": [uri]},
        lambda r: r["embeddings"]["float"][0],
    ),
    "cohere, inputs": Format(
        "/v2/embed",
        lambda uri: {
            **_COHERE,
            "inputs": [{"content": [{"type": "image_url", "image_url": {"url": uri}}]}],
        },
        lambda r: r["embeddings"]["float"][0],
    ),
    "voyage": Format(
        "/v1/multimodalembeddings",
        lambda uri: {"inputs": [{"content": [{"type": "image_base64", "image_base64": uri}]}]},
        lambda r: r["data"][0]["embedding"],
    ),
    "voyage, image_url": Format(
        "/v1/multimodalembeddings",
        lambda uri: {"inputs": [{"content": [{"type": "image_url", "image_url": uri}]}]},
        lambda r: r["data"][0]["embedding"],
    ),
}
each_format = pytest.mark.parametrize("format_", FORMATS.values(), ids=FORMATS)


def send(client: TestClient, format_: Format, uri: str) -> httpx2.Response:
    return client.post(format_.path, json=format_.body(uri))


@each_format
def test_every_format_passes_the_file_on(
    client: TestClient, lookup: FakeBackend, format_: Format
) -> None:
    reply = send(client, format_, data_uri(PNG))
    assert reply.status_code == 200, reply.text
    (group,) = lookup.groups
    assert (group.task, group.texts) == ("embed_images", (Image(PNG),))
    assert len(format_.vector(reply.json())) == SPEC.dim


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "GIF"])
def test_the_formats_of_the_web_are_accepted(client: TestClient, format_: str) -> None:
    uri = data_uri(image_file(format_), f"image/{format_.lower()}")
    assert send(client, FORMATS["jina"], uri).status_code == 200


def test_texts_and_images_keep_their_order(client: TestClient) -> None:
    items = [{"text": "a"}, {"image": data_uri(PNG)}, "b"]
    mixed = client.post("/v1/embeddings", json={"input": items}).json()["data"]
    alone = [client.post("/v1/embeddings", json={"input": [item]}) for item in items]
    vectors = [reply.json()["data"][0]["embedding"] for reply in alone]
    assert [item["embedding"] for item in mixed] == vectors


@each_format
@pytest.mark.parametrize(
    "uri",
    [
        "https://example.com/a.png",
        "HTTP://169.254.169.254/latest/meta-data",
        "file:///etc/passwd",
        "data:image/png,raw",
        "data:image/svg+xml;base64,PHN2Zy8+",
        "data:text/plain;base64,aGk=",
        "data:image/png;base64,%%%",
        "data:image/png;base64,",
        "",
    ],
)
def test_what_is_no_data_uri_of_an_image_is_a_client_error(
    client: TestClient, lookup: FakeBackend, format_: Format, uri: str
) -> None:
    reply = send(client, format_, uri)
    assert reply.status_code in (400, 422), reply.text
    assert lookup.groups == []


@each_format
@pytest.mark.parametrize("format_of_file", ["BMP", "TIFF", "ICO"])
def test_the_content_decides_not_the_declared_type(
    client: TestClient, format_: Format, format_of_file: str
) -> None:
    reply = send(client, format_, data_uri(image_file(format_of_file)))
    assert reply.status_code in (400, 422)
    assert "PNG, JPEG, WEBP, GIF" in reply.text


def png_header(width: int, height: int) -> bytes:
    """Returns a PNG that ends after its header: whoever decodes it fails otherwise."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    header = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    idat = b"IDAT" + zlib.compress(b"")
    return b"\x89PNG\r\n\x1a\n" + header + struct.pack(">I", len(idat) - 4) + idat + bytes(4)


@each_format
@pytest.mark.parametrize("size", [(8, 9), (65, 1), (30_000, 30_000), (2**31 - 1, 2**31 - 1)])
def test_an_image_of_too_many_pixels_is_rejected_by_its_header(
    client: TestClient, lookup: FakeBackend, format_: Format, size: tuple[int, int]
) -> None:
    reply = send(client, format_, data_uri(png_header(*size)))
    assert reply.status_code in (400, 422)
    assert "more than 64 pixels" in reply.text
    assert lookup.groups == []


def test_an_image_at_the_limits_is_accepted(client: TestClient) -> None:
    assert send(client, FORMATS["cohere"], data_uri(image_file("PNG", 8, 8))).status_code == 200


@each_format
def test_a_file_of_too_many_bytes_is_rejected(client: TestClient, format_: Format) -> None:
    reply = send(client, format_, data_uri(PNG + bytes(2001 - len(PNG))))
    assert reply.status_code in (400, 422)
    assert "at most 2000" in reply.text


@given(
    cut=st.integers(0, len(PNG)),
    flips=st.lists(st.tuples(st.integers(0, len(PNG) - 1), st.integers(0, 255)), max_size=4),
    format_=st.sampled_from(["PNG", "JPEG", "WEBP", "GIF"]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_file_never_causes_a_server_error(
    client: TestClient, cut: int, flips: list[tuple[int, int]], format_: str
) -> None:
    data = bytearray(image_file(format_))
    for position, value in flips:
        data[position % len(data)] = value
    reply = send(client, FORMATS["jina"], data_uri(bytes(data[: cut or len(data)])))
    assert reply.status_code in (200, 400), reply.text


@each_format
def test_a_model_of_texts_takes_no_images(format_: Format) -> None:
    app = create_app(Catalog([EmbedService(SPEC, FakeBackend(), LIMITS)]))
    reply = send(TestClient(app), format_, data_uri(PNG))
    assert reply.status_code == 400


def test_the_documentation_has_the_fields_of_images(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    for format_ in FORMATS.values():
        content = paths[format_.path]["post"]["requestBody"]["content"]["application/json"]
        schema = Draft202012Validator(content["schema"])
        assert schema.is_valid(format_.body(data_uri(PNG)))
    cohere = Draft202012Validator(
        paths["/v2/embed"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    )
    images = {**_COHERE, "images": [data_uri(PNG)]}
    assert cohere.is_valid(images)
    assert not cohere.is_valid({**images, "texts": ["a"]})
    assert not cohere.is_valid({**_COHERE, "images": ["https://example.com/a.png"]})


@each_format
def test_images_without_a_model_go_to_the_image_model(lookup: FakeBackend, format_: Format) -> None:
    text_model = EmbedService(SPEC, FakeBackend(), LIMITS)
    spec = replace(CLIP, name="org/clip", aliases=(), space_id="beef-fp32")
    app = create_app(Catalog([text_model, EmbedService(spec, lookup, LIMITS)]))
    body = {**format_.body(data_uri(PNG)), "model": None}
    reply = TestClient(app).post(format_.path, json=body)
    assert reply.status_code == 200, reply.text
    assert reply.headers["x-embedding-space"] == "beef-fp32"
    assert lookup.groups[0].texts == (Image(PNG),)


def test_texts_without_a_model_go_to_the_text_model(lookup: FakeBackend) -> None:
    text_model = EmbedService(SPEC, FakeBackend(), LIMITS)
    spec = replace(CLIP, name="org/clip", aliases=(), space_id="beef-fp32")
    app = create_app(Catalog([text_model, EmbedService(spec, lookup, LIMITS)]))
    reply = TestClient(app).post("/v1/embeddings", json={"input": [{"text": "a"}]})
    assert reply.headers["x-embedding-space"] == SPEC.space_id


def test_both_together_in_one_input_are_an_error(client: TestClient) -> None:
    parts = [
        {"type": "text", "text": "a"},
        {"type": "image_url", "image_url": {"url": data_uri(PNG)}},
    ]
    body = {"model": "fake", "input_type": "search_document", "inputs": [{"content": parts}]}
    reply = client.post("/v2/embed", json=body)
    assert reply.status_code == 400
    assert "not both together" in reply.json()["message"]


@pytest.fixture
def server() -> Iterator[ImageServer]:
    with image_server() as server:
        server.actions["/a.png"] = lambda handler: handler.reply(PNG)
        server.actions["/gone"] = lambda handler: handler.reply(b"secret", status=410)
        yield server


@pytest.fixture
def meter() -> Meter:
    return Meter()


@pytest.fixture
def url_client(lookup: FakeBackend, server: ImageServer, meter: Meter) -> Iterator[TestClient]:
    settings = LIMITS.model_copy(update={"allow_image_urls": (f"127.0.0.1:{server.port}",)})
    service = EmbedService(CLIP, lookup, settings, meter.for_model("fake"))
    with TestClient(create_app(Catalog([service])), raise_server_exceptions=False) as client:
        yield client


@each_format
def test_every_format_takes_urls_of_named_hosts(
    url_client: TestClient, lookup: FakeBackend, server: ImageServer, format_: Format
) -> None:
    by_url = send(url_client, format_, server.url("/a.png"))
    assert by_url.status_code == 200, by_url.text
    assert lookup.groups[-1].texts == (Image(PNG),)
    by_content = send(url_client, format_, data_uri(PNG))
    assert format_.vector(by_url.json()) == format_.vector(by_content.json())
    usage = [reply.json().get("usage") for reply in (by_url, by_content)]
    assert usage[0] == usage[1]


@each_format
@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}/gone", "http://other.test/a.png"])
def test_a_url_that_cannot_be_fetched_is_an_error_of_each_format(
    url_client: TestClient, lookup: FakeBackend, server: ImageServer, format_: Format, url: str
) -> None:
    url = url.format(port=server.port)
    reply = send(url_client, format_, url)
    assert reply.status_code == (422 if format_ is FORMATS["infinity"] else 400), reply.text
    assert url in reply.text
    assert "secret" not in reply.text
    assert lookup.groups == []


@each_format
def test_a_fetched_file_is_checked_like_one_in_the_body(
    url_client: TestClient, server: ImageServer, format_: Format
) -> None:
    server.actions["/bmp"] = lambda handler: handler.reply(image_file("BMP"))
    server.actions["/wide"] = lambda handler: handler.reply(png_header(65, 1))
    for path, reason in (("/bmp", "PNG, JPEG, WEBP, GIF"), ("/wide", "more than 64 pixels")):
        reply = send(url_client, format_, server.url(path))
        assert reply.status_code in (400, 422)
        assert reason in reply.text


def test_urls_texts_and_images_keep_their_order(
    url_client: TestClient, server: ImageServer
) -> None:
    server.actions["/b.gif"] = lambda handler: handler.reply(image_file("GIF"), "image/gif")
    items = ["a", {"image": server.url("/b.gif")}, {"image": data_uri(PNG)}, {"text": "b"}]
    mixed = url_client.post("/v1/embeddings", json={"input": items}).json()["data"]
    alone = [url_client.post("/v1/embeddings", json={"input": [item]}) for item in items]
    vectors = [reply.json()["data"][0]["embedding"] for reply in alone]
    assert [item["embedding"] for item in mixed] == vectors


def test_too_many_urls_are_rejected_before_one_is_fetched(
    url_client: TestClient, server: ImageServer
) -> None:
    items = [{"image": server.url(f"/a.png?{i}")} for i in range(LIMITS.max_texts_per_request + 1)]
    assert url_client.post("/v1/embeddings", json={"input": items}).status_code == 400
    assert server.requests == []


def test_the_time_limit_of_the_request_includes_the_fetch(
    url_client: TestClient, server: ImageServer
) -> None:
    server.actions["/slow"] = lambda handler: handler.server.stopped.wait()
    reply = url_client.post(
        "/v1/embeddings",
        json={"input": [{"image": server.url("/slow")}]},
        headers={"x-request-timeout-s": "0.2"},
    )
    assert reply.status_code == 504


def test_fetches_are_counted(url_client: TestClient, server: ImageServer, meter: Meter) -> None:
    for path in ("/a.png", "/gone"):
        send(url_client, FORMATS["jina"], server.url(path))
    assert meter.value(IMAGE_FETCHES, "ok", "fake") == 1
    assert meter.value(IMAGE_FETCHES, "status", "fake") == 1


def test_the_documentation_has_urls_where_they_are_fetched(
    client: TestClient, url_client: TestClient
) -> None:
    for format_ in FORMATS.values():
        for documented, valid in ((client, False), (url_client, True)):
            path = documented.get("/openapi.json").json()["paths"][format_.path]
            content = path["post"]["requestBody"]["content"]["application/json"]
            schema = Draft202012Validator(content["schema"])
            # A text field may be one of both.
            is_text = format_ in (FORMATS["nim"], FORMATS["infinity"])
            assert schema.is_valid(format_.body("https://a.test/b.png")) == (valid or is_text)
