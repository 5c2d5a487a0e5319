"""The files of the console as they are served: public, small, cacheable, and locked down."""

import gzip
import re
from collections.abc import Iterator
from urllib.parse import urljoin

import pytest
from starlette.testclient import TestClient

from serve_app.access.entrance import Entrance
from serve_app.access.keys import digest
from serve_app.access.quota import MemoryQuotaStore
from serve_app.config import AccessSettings, ApiKey, IngressSettings
from serve_app.service.catalog import Catalog
from serve_app.service.embed import EmbedService
from serve_app.web.app import create_app
from serve_app.web.console_files import read_files
from tests.fakes import SPEC, FakeBackend

MAX_BYTES = 150_000
NAMES = sorted(read_files())


def client_of(*, console: bool = True) -> TestClient:
    """A client of an application that requires API keys."""
    access = Entrance(MemoryQuotaStore())
    access.apply(AccessSettings(keys=(ApiKey(name="a", sha256=digest("s3cret")),)))
    catalog = Catalog([EmbedService(SPEC, FakeBackend(), IngressSettings())])
    return TestClient(create_app(catalog, access, console=console), follow_redirects=False)


@pytest.fixture
def client() -> Iterator[TestClient]:
    with client_of() as client:
        yield client


def test_the_page_needs_no_key_and_data_does(client: TestClient) -> None:
    assert client.get("/console").status_code == 200
    assert client.get("/info").status_code == 401
    assert client.post("/v1/embeddings", json={"input": "a"}).status_code == 401


def test_it_can_be_switched_off() -> None:
    with client_of(console=False) as client:
        assert client.get("/console").status_code == 404
        assert client.get("/console/main.js").status_code == 404


@pytest.mark.parametrize("path", ["/console", "/console/", "//console", "/prefix/console"])
def test_the_page_finds_its_files(client: TestClient, path: str) -> None:
    page = client.get("http://testserver" + path.removeprefix("/prefix")).text
    links = re.findall(r'(?:href|src)="(?!#)([^"]+\.\w+)"', page)
    assert len(links) == 3
    for link in links:
        url = urljoin("http://testserver" + path, link).replace("/prefix", "")
        assert client.get(url).status_code == 200, url


@pytest.mark.parametrize("name", NAMES)
def test_files_are_served_as_they_are(client: TestClient, name: str) -> None:
    path = "/console" if name == "index.html" else f"/console/{name}"
    reply = client.get(path, headers={"accept-encoding": "identity"})
    assert reply.content == read_files()[name]
    kind = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    assert reply.headers["content-type"].split(";")[0] == kind[name.rpartition(".")[2]]
    policy = reply.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert reply.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "name", ["index.html", "nothing.js", "%2e%2e/app.py", "..%2fapp.py", "%2e%2e%2fapp.py"]
)
def test_nothing_else_is_served(client: TestClient, name: str) -> None:
    assert client.get(f"/console/{name}").status_code == 404


def test_a_browser_downloads_an_unchanged_file_once(client: TestClient) -> None:
    first = client.get("/console/main.js")
    assert first.headers["cache-control"] == "no-cache"
    etag = first.headers["etag"]
    again = client.get("/console/main.js", headers={"if-none-match": f'"other", {etag}'})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == etag
    assert client.get("/console", headers={"if-none-match": etag}).status_code == 200


def test_large_files_are_compressed(client: TestClient) -> None:
    with client.stream("GET", "/console/console.css", headers={"accept-encoding": "gzip"}) as reply:
        body = b"".join(reply.iter_raw())
    assert reply.headers["content-encoding"] == "gzip"
    assert gzip.decompress(body) == read_files()["console.css"]


def test_all_files_together_are_small() -> None:
    assert sum(map(len, read_files().values())) < MAX_BYTES


def test_files_load_nothing_from_elsewhere_and_parse_no_data_as_html() -> None:
    for name, body in read_files().items():
        text = body.decode()
        addresses = set(re.findall(r"https?://[^\s\"'`]+", text))
        assert addresses <= {"http://www.w3.org/2000/svg"}, name
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b", text
        ), name
        assert not re.search(r"\sstyle=|\son\w+=\"|<style|javascript:", text), name
