"""`invalid_text`: characters that no text may hold."""

import httpx2
import pytest

from serve_app.config import IngressSettings
from serve_app.service.catalog import Catalog
from serve_app.service.embed import EmbedService
from serve_app.web.app import create_app
from tests.fakes import SPEC, FakeBackend

BODIES = {
    "/v1/embeddings": rb'{"input": ["fine", "a\u0000b", "c\ud800"]}',
    "/embed": rb'{"inputs": ["fine", "a\u0000b", "c\ud800"]}',
    "/tokenize": rb'{"inputs": ["fine", "a\u0000b", "c\ud800"]}',
    "/embed_all": rb'{"inputs": ["fine", "a\u0000b", "c\ud800"]}',
}


def _client(settings: IngressSettings) -> tuple[FakeBackend, httpx2.AsyncClient]:
    backend = FakeBackend()
    app = create_app(Catalog([EmbedService(SPEC, backend, settings)]))
    transport = httpx2.ASGITransport(app)
    return backend, httpx2.AsyncClient(
        transport=transport, base_url="http://x", headers={"content-type": "application/json"}
    )


@pytest.mark.parametrize("path", BODIES)
async def test_replaced_characters_are_reported(path: str) -> None:
    _, client = _client(IngressSettings(invalid_text="replace"))
    async with client:
        replaced = await client.post(path, content=BODIES[path])
        clean = BODIES[path].replace(rb"\u0000", rb"\ufffd").replace(rb"\ud800", rb"\ufffd")
        reference = await client.post(path, content=clean)
    assert (replaced.status_code, replaced.headers["x-replaced-inputs"]) == (200, "1-2")
    assert replaced.json() == reference.json()
    assert "x-replaced-inputs" not in reference.headers


@pytest.mark.parametrize("path", BODIES)
async def test_by_default_they_are_an_error_that_names_the_text(path: str) -> None:
    _, client = _client(IngressSettings())
    async with client:
        surrogate = await client.post(path, content=BODIES[path])
        nul = await client.post(path, content=BODIES[path].replace(rb"\ud800", b""))
    assert {surrogate.status_code, nul.status_code} <= {400, 422}
    assert "[2]` holds half a surrogate pair at character 1" in surrogate.text
    assert "Text 1 holds a NUL character (U+0000) at character 1" in nul.text
