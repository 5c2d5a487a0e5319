"""Fetches images from URLs: URL → allowed host → allowed address → bytes.

The URL comes from a client and the response from a server, and neither is trusted. The connection
goes to the addresses that were checked: a name is resolved once, by `_CheckedResolver`.
"""

import asyncio
import ipaddress
import re
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Literal
from urllib.parse import urljoin, urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from serve_app import __version__
from serve_app.config import RequestSettings
from serve_app.errors import ImageFetchError, short_repr
from serve_app.inputs import Image, ImageUrl, Input, RequestInput
from serve_app.meter import ModelMeter
from serve_app.metrics import IMAGE_FETCHES

_Outcome = Literal["refused", "timeout", "connection", "status", "media_type", "too_large"]
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_DEFAULT_PORTS: Final = (80, 443)
_MAX_URL_CHARS: Final = 8192
_MAX_REDIRECTS: Final = 3
_REDIRECTS: Final = (301, 302, 303, 307, 308)
#: Characters that a client has to percent-encode: they would end the request line.
_NOT_IN_URLS: Final = re.compile(r"[\x00-\x20\x7f]")
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_HEADERS: Final = {
    "user-agent": f"embedserve/{__version__}",
    "accept": "image/png, image/jpeg, image/webp, image/gif",
    "accept-encoding": "identity",  # a compressed response may unpack to any size
}
_HINT: Final = "Correct the URL, or send the image as a data URI, `data:image/png;base64,…`."
#: Name servers may be slow, and requests use the threads of the event loop.
_RESOLVER_THREADS: Final = ThreadPoolExecutor(16, "resolve-image-host")


class _FetchFailure(Exception):
    """An image can't be fetched: the end of a sentence that says why, and how to mend it."""

    def __init__(self, outcome: _Outcome, reason: str, hint: str = _HINT) -> None:
        super().__init__(outcome, reason, hint)
        self.outcome = outcome
        self.reason = reason
        self.hint = hint


class ImageFetcher:
    """Fetches images within the limits of the settings."""

    def __init__(self, settings: RequestSettings, meter: ModelMeter) -> None:
        """Creates a fetcher.

        Args:
            settings: hosts and limits.
            meter: counts outcomes.
        """
        self._settings = settings
        self._meter = meter
        self._hosts = [_split_host(host) for host in settings.allow_image_urls]
        self._slots = asyncio.Semaphore(settings.max_image_fetches)

    async def fetch(self, inputs: Sequence[RequestInput]) -> tuple[Input, ...]:
        """Returns inputs with images in place of their URLs. Equal URLs are fetched once.

        Raises:
            ImageFetchError: an image can't be fetched, or is too large. The others are cancelled.
        """
        budget = _ByteBudget(self._settings.max_body_bytes)
        # A request of many slow images leaves the other half to others.
        slots = asyncio.Semaphore(max(1, self._settings.max_image_fetches // 2))
        async with self._session() as session:
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = {
                        value: group.create_task(self._fetch(session, value, budget, slots))
                        for value in dict.fromkeys(inputs)
                        if isinstance(value, ImageUrl)
                    }
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None
        return tuple(
            tasks[value].result() if isinstance(value, ImageUrl) else value for value in inputs
        )

    def _session(self) -> aiohttp.ClientSession:
        """Returns a session without cookies and proxies, which connects to allowed addresses."""
        resolver = _CheckedResolver(self._settings)
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, resolver=resolver),
            headers=_HEADERS,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
        )

    async def _fetch(
        self,
        session: aiohttp.ClientSession,
        image: ImageUrl,
        budget: "_ByteBudget",
        slots: asyncio.Semaphore,
    ) -> Image:
        timeout_s = self._settings.image_url_timeout_s
        try:
            async with slots, self._slots, asyncio.timeout(timeout_s):
                data = await self._follow(session, image.url, budget)
        except _FetchFailure as error:
            failure = error
        except TimeoutError:
            failure = _FetchFailure("timeout", f"it didn't arrive within {timeout_s:g} s")
        except aiohttp.ClientConnectorDNSError:
            failure = _FetchFailure("connection", "its host name can't be resolved")
        except aiohttp.ClientConnectorCertificateError:
            failure = _FetchFailure("connection", "the certificate of its server isn't trusted")
        except (aiohttp.ClientError, OSError, ValueError):
            failure = _FetchFailure("connection", "the connection failed")
        else:
            self._meter.add(IMAGE_FETCHES, 1, "ok")
            return Image(data)
        self._meter.add(IMAGE_FETCHES, 1, failure.outcome)
        raise ImageFetchError(
            f"The image at {short_repr(image.url)} can't be fetched: {failure.reason}. "
            f"{failure.hint}",
            image.field,
        )

    async def _follow(
        self, session: aiohttp.ClientSession, url: str, budget: "_ByteBudget"
    ) -> bytes:
        """Returns the image at a URL, after redirects."""
        base = ""
        for _ in range(_MAX_REDIRECTS + 1):
            checked = self._checked_url(url, base)
            async with session.get(checked, allow_redirects=False) as response:
                if response.status not in _REDIRECTS:
                    return await self._read(response, budget)
                base, url = str(checked), response.headers.get("location", "")
        raise _FetchFailure("refused", f"there are more than {_MAX_REDIRECTS} redirects")

    def _checked_url(self, text: str, base: str) -> URL:
        """Returns a URL, relative to the one that redirected, if it is allowed."""
        if len(text) > _MAX_URL_CHARS:
            raise _FetchFailure("refused", f"its URL has more than {_MAX_URL_CHARS} characters")
        if _NOT_IN_URLS.search(text):
            raise _FetchFailure("refused", "its URL has a space or a control character")
        try:
            text = urljoin(base, text)
            # Signatures may depend on how a URL is percent-encoded.
            url = URL(text, encoded=text.isascii())
            scheme, host, port = url.scheme, url.raw_host, url.port
        except ValueError:
            raise _FetchFailure("refused", "its URL is malformed") from None
        if scheme not in ("http", "https") or not host or port is None:
            raise _FetchFailure("refused", "only URLs with `http` or `https` and a host are taken")
        if url.raw_user is not None or url.raw_password is not None:
            raise _FetchFailure("refused", "a URL with a user name or password is not taken")
        host = host.lower().removesuffix(".")
        if not any(_matches(host, port, *allowed) for allowed in self._hosts):
            raise _FetchFailure(
                "refused", f"the service takes no images from {short_repr(host)} at port {port}"
            )
        return url

    async def _read(self, response: aiohttp.ClientResponse, budget: "_ByteBudget") -> bytes:
        """Returns the body of a response, if it is an image within the limits."""
        if response.status != 200:
            raise _FetchFailure("status", f"its server responded with status {response.status}")
        if not response.content_type.startswith("image/"):
            raise _FetchFailure("media_type", "the content type of the response is not an image's")
        limit, data = self._settings.max_image_bytes, bytearray()
        async for chunk in response.content.iter_any():
            data += chunk
            budget.spend(len(chunk))
            if len(data) > limit:
                reason = f"it has more than {limit} bytes, the most that are taken"
                raise _FetchFailure("too_large", reason, "Scale it down.")
        return bytes(data)


class _ByteBudget:
    """The bytes that the images of one request may have together."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._spent = 0

    def spend(self, n: int) -> None:
        """Counts received bytes."""
        self._spent += n
        if self._spent > self._limit:
            raise _FetchFailure(
                "too_large",
                f"the images of the request have more than {self._limit} bytes together, the most "
                "that are taken",
                "Split the request.",
            )


class _CheckedResolver(AbstractResolver):
    """Resolves host names to addresses that are public, or in the networks of the settings."""

    def __init__(self, settings: RequestSettings) -> None:
        self._networks = settings.image_url_networks

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Returns the allowed addresses of a host.

        Raises:
            OSError: the name can't be resolved.
            _FetchFailure: none of its addresses is allowed.
        """
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(
            _RESOLVER_THREADS, socket.getaddrinfo, host, port, family, socket.SOCK_STREAM
        )
        allowed = [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=port,
                family=found_family,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for found_family, _, protocol, _, address in found
            if self._allows(ipaddress.ip_address(address[0]))
        ]
        if not allowed:
            raise _FetchFailure("refused", f"the host {short_repr(host)} has no public address")
        return allowed

    async def close(self) -> None:
        """Does nothing: the threads are shared."""

    def _allows(self, address: _Address) -> bool:
        if isinstance(address, ipaddress.IPv6Address):
            address = _embedded_ipv4(address) or address
        if any(address in network for network in self._networks):
            return True
        reserved = address.is_reserved or address.is_multicast
        return address.is_global and not reserved and not getattr(address, "is_site_local", False)


def _embedded_ipv4(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """Returns the IPv4 address to which a gateway forwards connections; None: there is none."""
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour


def _split_host(host: str) -> tuple[str, int | None]:
    """Returns name and port of an `ImageHost`."""
    parts = urlsplit(f"//{host}")
    return parts.hostname or "", parts.port


def _matches(host: str, port: int, allowed_host: str, allowed_port: int | None) -> bool:
    if allowed_port is None and port not in _DEFAULT_PORTS:
        return False
    if allowed_port is not None and port != allowed_port:
        return False
    if allowed_host.startswith("*."):
        return host.endswith(allowed_host[1:])
    return host == allowed_host
