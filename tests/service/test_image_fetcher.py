"""Images from URLs, fetched from a real server that misbehaves."""

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from serve_app.config import IngressSettings
from serve_app.errors import ImageFetchError
from serve_app.inputs import Image, ImageUrl, RequestInput
from serve_app.meter import Meter
from serve_app.metrics import IMAGE_FETCHES
from serve_app.service.image_fetcher import ImageFetcher
from tests.image_server import Handler, ImageServer, image_server, redirect

CONTENT = b"the bytes of an image"
OK = "/image.png"


@pytest.fixture
def server() -> Iterator[ImageServer]:
    with image_server() as server:
        server.actions[OK] = lambda handler: handler.reply(CONTENT)
        yield server


@pytest.fixture
def meter() -> Meter:
    return Meter()


def fetcher(meter: Meter, *hosts: str, **settings: Any) -> ImageFetcher:
    values = {"image_url_timeout_s": 5.0, "allow_image_urls": hosts} | settings
    return ImageFetcher(IngressSettings.model_validate(values), meter.for_model("m"))


async def fetch(fetcher: ImageFetcher, *urls: str) -> tuple[RequestInput, ...]:
    return await fetcher.fetch([ImageUrl(url, "input") for url in urls])


async def refusal(fetcher: ImageFetcher, url: str) -> str:
    """Returns the error of a URL that isn't fetched."""
    with pytest.raises(ImageFetchError) as error:
        await fetch(fetcher, url)
    assert error.value.param == "input"
    assert CONTENT.decode() not in str(error.value)
    return str(error.value)


def resolve_to(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Makes name servers give these answers, the last one repeatedly; returns the names asked."""
    names: list[str] = []

    def getaddrinfo(host: str, port: int, *args: Any) -> list[Any]:
        names.append(host)
        addresses = answers[min(len(names), len(answers)) - 1]
        return [
            (
                socket.AF_INET6 if ":" in address else socket.AF_INET,
                socket.SOCK_STREAM,
                socket.IPPROTO_TCP,
                "",
                (address, port),
            )
            for address in addresses
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return names


async def test_images_take_the_place_of_their_urls(server: ImageServer, meter: Meter) -> None:
    url = ImageUrl(server.url(OK), "input")
    inputs: list[RequestInput] = ["a", url, Image(b"b"), url]
    images = await fetcher(meter, f"127.0.0.1:{server.port}").fetch(inputs)
    assert images == ("a", Image(CONTENT), Image(b"b"), Image(CONTENT))
    ((path, headers),) = server.requests  # equal URLs are fetched once
    assert path == OK
    assert headers.keys() == {"host", "user-agent", "accept", "accept-encoding"}
    assert meter.value(IMAGE_FETCHES, "ok", "m") == 1


@pytest.mark.parametrize("query", ["a%2Fb=%20%3A&c=1+2", "ä=1"])
async def test_a_query_keeps_its_encoding(server: ImageServer, meter: Meter, query: str) -> None:
    await fetch(fetcher(meter, f"127.0.0.1:{server.port}"), server.url(f"{OK}?{query}"))
    assert server.requests[0][0] == f"{OK}?{query.replace('ä', '%C3%A4')}"


@pytest.mark.parametrize(
    ("hosts", "url"),
    [
        (["images.test"], "http://images.test.evil.test/a"),
        (["images.test"], "http://evil-images.test/a"),
        (["images.test"], "http://sub.images.test/a"),
        (["*.images.test"], "http://images.test/a"),
        (["*.images.test"], "http://evilimages.test/a"),
        (["images.test"], "http://images.test:8080/a"),
        (["images.test:8080"], "http://images.test/a"),
        (["images.test"], "http://user@images.test/a"),
        (["images.test"], "http://user:password@images.test/a"),
        (["images.test"], "http://images.test\\@evil.test/a"),
        (["images.test"], "http://evil.test#@images.test/a"),
        (["images.test"], "http://evil.test/?@images.test/a"),
        (["images.test"], "http://images.test:99999/a"),
        (["images.test"], "http://[images.test/a"),
        (["images.test"], "http:///a"),
        (["images.test"], "http://images.test/a b"),
        (["images.test"], "http://images.test/a\r\nhost: evil.test"),
        (["images.test"], "ftp://images.test/a"),
        (["images.test"], "http://images.test/" + 8192 * "a"),
        (["127.0.0.1"], "http://2130706433/a"),
        (["127.0.0.1"], "http://127.1/a"),
        (["127.0.0.1"], "http://127.0.0.2/a"),
        (["127.0.0.1"], "http://[::1]/a"),
    ],
)
async def test_other_urls_are_refused_before_their_names_are_resolved(
    monkeypatch: pytest.MonkeyPatch, meter: Meter, hosts: list[str], url: str
) -> None:
    names = resolve_to(monkeypatch, ["127.0.0.1"])
    await refusal(fetcher(meter, *hosts, image_url_networks=["127.0.0.0/8"]), url)
    assert names == []
    assert meter.value(IMAGE_FETCHES, "refused", "m") == 1


@pytest.mark.parametrize("host", ["images.test", "IMAGES.test", "images.test.", "a.b.images.test"])
async def test_named_hosts_are_fetched_from(
    monkeypatch: pytest.MonkeyPatch, server: ImageServer, meter: Meter, host: str
) -> None:
    resolve_to(monkeypatch, ["127.0.0.1"])
    hosts = [f"images.test:{server.port}", f"*.images.test:{server.port}"]
    allowed = fetcher(meter, *hosts, image_url_networks=["127.0.0.0/8"])
    assert await fetch(allowed, server.url(OK, host)) == (Image(CONTENT),)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1"),
        *("0.0.0.0", "224.0.0.1", "255.255.255.255", "192.0.2.1"),
        *("::", "::1", "::127.0.0.1", "fe80::1", "fd00::1", "fec0::1", "ff02::1", "2001:db8::1"),
        *("::ffff:127.0.0.1", "64:ff9b::127.0.0.1", "64:ff9b:1::1", "2002:7f00:1::"),
    ],
)
async def test_addresses_that_are_not_public_are_refused(
    monkeypatch: pytest.MonkeyPatch, server: ImageServer, meter: Meter, address: str
) -> None:
    resolve_to(monkeypatch, [address])
    allowed = fetcher(meter, f"images.test:{server.port}")
    assert "no public address" in await refusal(allowed, server.url(OK, "images.test"))
    assert server.requests == []


async def test_a_public_address_is_connected_to(
    monkeypatch: pytest.MonkeyPatch, meter: Meter
) -> None:
    resolve_to(monkeypatch, ["192.88.99.1"])  # public, and of nobody
    await refusal(fetcher(meter, "images.test", image_url_timeout_s=0.2), "http://images.test/")
    assert meter.value(IMAGE_FETCHES, "refused", "m") == 0


async def test_the_connection_goes_to_the_address_that_was_checked(
    monkeypatch: pytest.MonkeyPatch, server: ImageServer, meter: Meter
) -> None:
    names = resolve_to(monkeypatch, ["127.0.0.1"], ["127.0.0.2"])
    allowed = fetcher(
        meter, f"images.test:{server.port}", image_url_networks=["127.0.0.1/32", "::1/128"]
    )
    assert await fetch(allowed, server.url(OK, "images.test")) == (Image(CONTENT),)
    assert names == ["images.test"]
    assert "no public" in await refusal(allowed, server.url(OK, "images.test"))


async def test_only_the_allowed_addresses_of_a_name_are_used(
    monkeypatch: pytest.MonkeyPatch, server: ImageServer, meter: Meter
) -> None:
    resolve_to(monkeypatch, ["::1", "127.0.0.2", "127.0.0.1"])
    allowed = fetcher(meter, f"images.test:{server.port}", image_url_networks=["127.0.0.1/32"])
    assert await fetch(allowed, server.url(OK, "images.test")) == (Image(CONTENT),)


async def test_a_name_that_is_unknown_is_an_error(
    monkeypatch: pytest.MonkeyPatch, meter: Meter
) -> None:
    def getaddrinfo(*args: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    await refusal(fetcher(meter, "images.test"), "http://images.test/")
    assert meter.value(IMAGE_FETCHES, "connection", "m") == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_between_allowed_hosts_are_followed(
    server: ImageServer, meter: Meter, status: int
) -> None:
    allowed = fetcher(meter, f"127.0.0.1:{server.port}")
    for i, location in enumerate((server.url("/1"), "/2", "image.png")):
        server.actions[f"/{i}"] = redirect(location, status)
    assert await fetch(allowed, server.url("/0")) == (Image(CONTENT),)
    server.actions["/more"] = redirect("/0", status)
    assert "more than 3 redirects" in await refusal(allowed, server.url("/more"))


async def test_a_redirect_to_another_host_is_refused(server: ImageServer, meter: Meter) -> None:
    allowed = fetcher(meter, f"127.0.0.1:{server.port}")
    with image_server() as other:
        locations = ("http://169.254.169.254/", "file:///etc/passwd", "//x/", "http://[x/")
        for location in (other.url(OK), *locations):
            server.actions["/"] = redirect(location)
            await refusal(allowed, server.url())
        assert other.requests == []
    assert meter.value(IMAGE_FETCHES, "refused", "m") == 5


def endless(handler: Handler) -> None:
    handler.start(200, {"content-type": "image/png", "connection": "close"})
    while not handler.server.stopped.is_set():
        handler.wfile.write(bytes(4096))


def endless_chunks(handler: Handler) -> None:
    handler.start(200, {"content-type": "image/png", "transfer-encoding": "chunked"})
    while not handler.server.stopped.is_set():
        handler.wfile.write(b"1000\r\n" + bytes(4096) + b"\r\n")


def slow_body(handler: Handler) -> None:
    handler.start(200, {"content-type": "image/png", "content-length": "1000000"})
    while not handler.server.stopped.wait(0.05):
        handler.wfile.write(b"x")


def slow_head(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while not handler.server.stopped.wait(0.05):
        handler.wfile.write(b"x-header: x\r\n")


def cut_off(handler: Handler) -> None:
    handler.start(200, {"content-type": "image/png", "content-length": "1000"})
    handler.wfile.write(CONTENT)
    handler.close_connection = True


def no_http(handler: Handler) -> None:
    handler.wfile.write(b"\x00\x01\x02 nothing\r\n\r\n")
    handler.close_connection = True


@pytest.mark.parametrize(
    ("action", "outcome", "reason"),
    [
        (endless, "too_large", "more than 5000 bytes"),
        (endless_chunks, "too_large", "more than 5000 bytes"),
        (slow_body, "timeout", "within 0.3 s"),
        (slow_head, "timeout", "within 0.3 s"),
        (cut_off, "connection", "connection failed"),
        (no_http, "connection", "connection failed"),
        (lambda h: h.reply(CONTENT, "text/html"), "media_type", "content type"),
        (lambda h: h.reply(CONTENT, "imagery"), "media_type", "content type"),
        (lambda h: h.start(200, {"content-length": "0"}), "media_type", "content type"),
        (lambda h: h.reply(CONTENT, status=404), "status", "status 404"),
        (lambda h: h.reply(CONTENT, status=410), "status", "status 410"),
        (lambda h: h.reply(CONTENT, status=206), "status", "status 206"),
        (lambda h: h.reply(CONTENT, status=500), "status", "status 500"),
    ],
)
async def test_a_server_that_misbehaves_is_the_callers_error(
    server: ImageServer, meter: Meter, action: Any, outcome: str, reason: str
) -> None:
    server.actions["/"] = action
    allowed = fetcher(
        meter, f"127.0.0.1:{server.port}", max_image_bytes=5000, image_url_timeout_s=0.3
    )
    message = await refusal(allowed, server.url())
    assert reason in message
    assert server.url() in message
    assert meter.value(IMAGE_FETCHES, outcome, "m") == 1


async def test_nothing_listens(server: ImageServer, meter: Meter) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{unused.getsockname()[1]}"
        assert "connection failed" in await refusal(fetcher(meter, host), f"http://{host}/")


async def test_the_images_of_a_request_are_limited_together(
    server: ImageServer, meter: Meter
) -> None:
    server.actions["/"] = lambda handler: handler.reply(bytes(600))
    allowed = fetcher(meter, f"127.0.0.1:{server.port}", max_body_bytes=1024)
    assert len(await fetch(allowed, server.url("/?1"))) == 1
    with pytest.raises(ImageFetchError, match="more than 1024 bytes together"):
        await fetch(allowed, server.url("/?1"), server.url("/?2"))


async def test_only_so_many_images_are_fetched_at_a_time(server: ImageServer, meter: Meter) -> None:
    current, most = 0, 0

    def action(handler: Handler) -> None:
        nonlocal current, most
        current += 1
        most = max(most, current)
        handler.server.stopped.wait(0.02)
        current -= 1
        handler.reply(CONTENT)

    server.actions["/"] = action
    allowed = fetcher(meter, f"127.0.0.1:{server.port}", max_image_fetches=2)
    requests = ([server.url(f"/?{i}{j}") for j in range(4)] for i in range(3))
    await asyncio.gather(*(fetch(allowed, *urls) for urls in requests))
    assert most == 2


async def test_a_request_of_slow_images_leaves_room_for_others(
    server: ImageServer, meter: Meter
) -> None:
    server.actions["/slow"] = slow_body
    host = f"127.0.0.1:{server.port}"
    allowed = fetcher(meter, host, max_image_fetches=4, image_url_timeout_s=600)
    slow = asyncio.create_task(fetch(allowed, *(server.url(f"/slow?{i}") for i in range(9))))
    async with asyncio.timeout(30):
        while len(server.requests) < 2:
            await asyncio.sleep(0.01)
        assert await fetch(allowed, server.url(OK)) == (Image(CONTENT),)
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slow


async def test_one_failure_ends_the_other_fetches(server: ImageServer, meter: Meter) -> None:
    server.actions["/slow"] = slow_body
    server.actions["/gone"] = lambda handler: handler.reply(b"", status=410)
    allowed = fetcher(meter, f"127.0.0.1:{server.port}", image_url_timeout_s=600)
    with pytest.raises(ImageFetchError, match="410"):
        await fetch(allowed, server.url("/slow"), server.url("/gone"))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await fetch(allowed, server.url("/slow"))
    assert await fetch(allowed, server.url(OK)) == (Image(CONTENT),)


async def test_proxies_and_cookies_are_not_used(
    monkeypatch: pytest.MonkeyPatch, server: ImageServer, meter: Meter
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    server.actions["/"] = redirect(OK, 302, **{"set-cookie": "a=b"})
    resolve_to(monkeypatch, ["127.0.0.1"])
    allowed = fetcher(meter, f"images.test:{server.port}", image_url_networks=["127.0.0.0/8"])
    assert await fetch(allowed, server.url(host="images.test")) == (Image(CONTENT),)
    assert all("cookie" not in headers for _, headers in server.requests)
