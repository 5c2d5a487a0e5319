"""Images with both clients, against a scripted server."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from embedserve_client import FileError, LocalModel, NetworkError, SpaceMismatchError
from tests.embedserve_client.scripted_server import (
    DIM,
    SPACE,
    Action,
    Handler,
    ScriptedServer,
    vectors,
)


def image(format_: str, color: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (3, 2), color).save(buffer, format_)
    return buffer.getvalue()


def content_vectors() -> Action:
    """Responds with a vector for each image: the sum of its bytes."""

    def action(handler: Handler) -> None:
        urls = [item["image"] for item in handler.body["input"]]
        contents = [base64.b64decode(url.partition(",")[2]) for url in urls]
        values = np.array([[sum(content)] * DIM for content in contents], dtype="<f4")
        headers = {
            "content-type": "application/octet-stream",
            "x-embedding-shape": f"{len(urls)},{DIM}",
            "x-embedding-space": SPACE,
        }
        handler.respond(200, values.tobytes(), headers)

    return action


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "GIF", "WEBP"])
def test_images_are_sent_as_data_uris(
    make_client: Any, server: ScriptedServer, tmp_path: Path, format_: str
) -> None:
    content = image(format_)
    path = tmp_path / "image"
    path.write_bytes(content)
    server.script = [content_vectors() for _ in range(2)]
    client = make_client(server.url, model="m")
    uri = f"data:image/{format_.lower()};base64,{base64.b64encode(content).decode()}"
    result = client.call("embed_images", [content, path, str(path), uri])
    assert result.tolist() == [[float(sum(content))] * DIM] * 4
    assert (str(result.space), result.source) == (SPACE, "service")
    assert client.call("embed_images", content, model="n", dimensions=2).shape == (DIM,)
    first, second = server.bodies
    assert first == {"input": [{"image": uri}] * 4, "encoding_format": "base64", "model": "m"}
    assert (second["model"], second["dimensions"]) == ("n", 2)
    assert server.paths == ["/v1/embeddings"] * 2


def test_urls_are_left_to_the_service(make_client: Any, server: ScriptedServer) -> None:
    server.script = [content_vectors()]
    make_client(server.url).call("embed_images", "https://example.com/a.png")
    assert server.bodies[0]["input"] == [{"image": "https://example.com/a.png"}]


def test_requests_stay_below_the_limit_of_a_body(make_client: Any, server: ScriptedServer) -> None:
    large = image("PNG") + bytes(3 << 20)  # decoders ignore what follows an image
    images = [large + bytes([i]) for i in range(3)] + [image("PNG", i) for i in range(3)]
    server.script = [content_vectors() for _ in range(6)]
    result = make_client(server.url, batch_size=2).call("embed_images", images)
    assert result[:, 0].tolist() == [float(sum(content)) for content in images]
    assert sorted(len(body["input"]) for body in server.bodies) == [1, 1, 2, 2]
    assert {headers["x-priority"] for headers in server.headers} == {"bulk"}


def test_files_that_are_no_images_are_rejected(
    make_client: Any, server: ScriptedServer, tmp_path: Path
) -> None:
    client = make_client(server.url)
    with pytest.raises(ValueError, match="Image 1 isn't PNG, JPEG, GIF or WebP"):
        client.call("embed_images", [image("PNG"), b"<svg/>"])
    with pytest.raises(FileError, match=r"missing\.png can't be read"):
        client.call("embed_images", [tmp_path / "missing.png"])
    with pytest.raises(TypeError, match="no option 'truncation'"):
        client.call("embed_images", [image("PNG")], truncation="chunk")
    assert server.paths == []


def test_vectors_of_texts_and_images_are_comparable_or_have_named_models(
    make_client: Any, server: ScriptedServer
) -> None:
    other_space = "f" * 16 + "-fp32"
    client = make_client(server.url)
    server.script = [vectors(other_space), content_vectors()]
    assert len(client.embed(["a"])) == 1
    with pytest.raises(SpaceMismatchError, match="name the model in each call"):
        client.call("embed_images", [image("PNG")])
    server.script = [content_vectors(), vectors(), vectors(other_space)]
    images = client.call("embed_images", [image("PNG")], model="clip")
    assert client.embed(["a"], model="clip").space == images.space
    with pytest.raises(SpaceMismatchError):
        client.embed(["a"], model="clip")


def test_a_local_model_does_not_embed_images(make_client: Any) -> None:
    client = make_client("http://127.0.0.1:9", fallback="local", local_model=LocalModel("stub"))
    with pytest.raises(NetworkError, match="can't embed images instead"):
        client.call("embed_images", [image("PNG")])
