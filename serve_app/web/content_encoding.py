"""Content codings (RFC 9110): unpacks request bodies, and compresses replies where it pays."""

import asyncio
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import brotli
from starlette.responses import Response

from serve_app.errors import BodyTooLarge, InvalidJSON, UnsupportedContentEncoding, short_repr
from serve_app.web.accept import parse_weights

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

#: Codings of request bodies, as the reply header `Accept-Encoding` lists them.
ACCEPTED_CODINGS = "gzip, deflate, br, zstd"

_MAX_CODINGS = 4
_MAX_FRAMES = 64  #: gzip members or zstd frames in a body
#: RFC 9659 limits the window of the coding zstd to 8 MiB.
_ZSTD_WINDOW_LOG_MAX = 23
_GZIP_WBITS, _RAW_DEFLATE_WBITS = 31, -15
#: The fastest level: higher ones take several times as long for less than a tenth of the size.
_LEVEL = 1
_SAMPLE_BYTES = 4096
#: gzip pays for decimal numbers (0.45). For base64 (0.75) it takes as long and saves little.
_GZIP_MAX_RATIO = 0.7
#: A larger body is compressed in a thread: it would block the event loop for too long.
_MAX_INLINE_BYTES = 1 << 16


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def parse_content_encoding(header: str) -> Sequence[str]:
    """Returns the codings of a request body, in the order in which they were applied.

    Raises:
        UnsupportedContentEncoding: a coding is unknown, or there are too many.
    """
    names = [name.strip().lower() for name in header.split(",")]
    codings = [name for name in names if name not in ("", "identity")]
    for name in codings:
        if name not in _DECODERS:
            raise UnsupportedContentEncoding(
                f"The content coding {short_repr(name)} is not supported. "
                f"Send one of {ACCEPTED_CODINGS}, or no `Content-Encoding`."
            )
    if len(codings) > _MAX_CODINGS:
        raise UnsupportedContentEncoding(f"The body has more than {_MAX_CODINGS} content codings.")
    return codings


async def unpack(body: bytes, codings: Sequence[str], max_bytes: int) -> bytes:
    """Returns a request body without its content codings.

    Raises:
        BodyTooLarge: a body is larger than `max_bytes`; the rest isn't unpacked.
        InvalidJSON: the data is broken or truncated.
    """
    for coding in reversed(codings):
        body = await asyncio.to_thread(_unpack, coding, body, max_bytes)
    return body


def _unpack(coding: str, body: bytes, max_bytes: int) -> bytes:
    try:
        unpacked = _DECODERS[coding](body, max_bytes)
    except (zlib.error, brotli.error, zstd.ZstdError, EOFError) as error:
        raise InvalidJSON(f"The body isn't valid {coding} data: {error}.") from None
    if len(unpacked) > max_bytes:
        raise BodyTooLarge(
            f"The unpacked body is larger than {max_bytes} bytes. "
            "Split the request into smaller ones."
        )
    return unpacked


def _read_frames(new: Callable[[], _Decompressor], body: bytes, max_bytes: int) -> bytes:
    """Returns the content of all frames, or its beginning of more than `max_bytes` bytes."""
    content = b""
    for _ in range(_MAX_FRAMES):
        decompressor = new()
        content += decompressor.decompress(body, max_bytes + 1 - len(content))
        if len(content) > max_bytes:
            return content
        if not decompressor.eof:
            raise EOFError("it ends too early")
        body = decompressor.unused_data
        if not body:
            return content
    raise EOFError(f"it has more than {_MAX_FRAMES} frames")


def _read_gzip(body: bytes, max_bytes: int) -> bytes:
    return _read_frames(lambda: zlib.decompressobj(_GZIP_WBITS), body, max_bytes)


def _read_deflate(body: bytes, max_bytes: int) -> bytes:
    """Reads the zlib format. Many clients send raw deflate data under the same name."""
    is_zlib = len(body) >= 2 and body[0] & 15 == 8 and int.from_bytes(body[:2]) % 31 == 0
    wbits = zlib.MAX_WBITS if is_zlib else _RAW_DEFLATE_WBITS
    return _read_frames(lambda: zlib.decompressobj(wbits), body, max_bytes)


def _read_zstd(body: bytes, max_bytes: int) -> bytes:
    options = {int(zstd.DecompressionParameter.window_log_max): _ZSTD_WINDOW_LOG_MAX}
    return _read_frames(lambda: zstd.ZstdDecompressor(options=options), body, max_bytes)


def _read_brotli(body: bytes, max_bytes: int) -> bytes:
    decompressor = brotli.Decompressor()
    content: bytes = decompressor.process(body, output_buffer_limit=max_bytes + 1)
    while len(content) <= max_bytes and not decompressor.is_finished():
        more = decompressor.process(b"", output_buffer_limit=max_bytes + 1 - len(content))
        if not more:
            raise EOFError("it ends too early")
        content += more
    return content


_DECODERS: Mapping[str, Callable[[bytes, int], bytes]] = {
    "gzip": _read_gzip,
    "x-gzip": _read_gzip,
    "deflate": _read_deflate,
    "br": _read_brotli,
    "zstd": _read_zstd,
}


async def compress(response: Response, accept_encoding: str, min_bytes: int) -> Response:
    """Compresses the body of a response where it pays, and returns the response.

    The body stays as it is if the client accepts neither `zstd` nor `gzip` or prefers `identity`,
    if gzip would save little, or if it is smaller than `min_bytes`; 0: always.
    """
    body = bytes(response.body)
    if not 0 < min_bytes <= len(body):
        return response
    response.headers.add_vary_header("accept-encoding")
    coding = _choose_coding(accept_encoding)
    if coding is None or (coding == "gzip" and not _gzip_pays(body)):
        return response
    function = _gzip if coding == "gzip" else _zstd
    response.body = (
        await asyncio.to_thread(function, body) if len(body) > _MAX_INLINE_BYTES else function(body)
    )
    response.headers["content-encoding"] = coding
    response.headers["content-length"] = str(len(response.body))
    return response


def _choose_coding(accept_encoding: str) -> str | None:
    if not accept_encoding:
        return None
    weights = parse_weights(accept_encoding)
    zstd_weight = weights.get("zstd", 0.0)
    gzip_weight = weights.get("gzip", weights.get("x-gzip", weights.get("*", 0.0)))
    best = max(zstd_weight, gzip_weight)
    if best == 0 or best < weights.get("identity", 0.0):
        return None
    return "zstd" if zstd_weight == best else "gzip"


def _gzip_pays(body: bytes) -> bool:
    middle = len(body) // 2
    sample = body[middle : middle + _SAMPLE_BYTES]
    return len(zlib.compress(sample, _LEVEL)) < _GZIP_MAX_RATIO * len(sample)


def _gzip(body: bytes) -> bytes:
    return zlib.compress(body, _LEVEL, _GZIP_WBITS)


def _zstd(body: bytes) -> bytes:
    return zstd.compress(body, _LEVEL)
