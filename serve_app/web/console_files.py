"""The console at `/console`: static files without data, so clients need no API key for them.

All data comes from the service's other routes. The page calls them with the key that its user
enters.
"""

import hashlib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import PurePath
from typing import NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serve_app.service.catalog import Catalog
from serve_app.web.content_encoding import compress

PATH = "/console"
_PAGE = "index.html"
_MEDIA_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
_HEADERS = {
    # Everything comes from this origin, and nothing is inline.
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; object-src 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    # A browser asks each time whether a file has changed, so that it never mixes two versions.
    "cache-control": "no-cache",
}


class _File(NamedTuple):
    body: bytes
    media_type: str
    etag: str


def _file(name: str, body: bytes) -> _File:
    # Weak: the same tag stands for the compressed body too.
    digest = hashlib.sha256(body).hexdigest()[:32]
    return _File(body, _MEDIA_TYPES[PurePath(name).suffix], f'W/"{digest}"')


def read_files() -> Mapping[str, bytes]:
    """Returns the content of each file of the console, by its name."""
    folder = files(__package__).joinpath("console")
    return {item.name: item.read_bytes() for item in folder.iterdir() if item.is_file()}


class ConsoleFiles:
    """Serves the files of the console, which it reads once."""

    def __init__(self, catalog: Catalog) -> None:
        """Reads the files.

        Args:
            catalog: its settings say from which size on replies are compressed.
        """
        self._catalog = catalog
        contents = read_files()
        page = contents[_PAGE]
        self._files = {name: _file(name, body) for name, body in contents.items()}
        self._page = self._files[_PAGE]
        # A browser resolves relative URLs against `/console/` otherwise than against `/console`.
        self._page_in_folder = _file(_PAGE, page.replace(b'="console/', b'="'))
        self.routes = (
            Route(PATH, self._get_page),
            Route(f"{PATH}/", self._get_page_in_folder),
            Route(f"{PATH}/{{name}}", self._get_file),
        )

    async def _get_page(self, request: Request) -> Response:
        return await self._respond(request, self._page)

    async def _get_page_in_folder(self, request: Request) -> Response:
        return await self._respond(request, self._page_in_folder)

    async def _get_file(self, request: Request) -> Response:
        file = self._files.get(request.path_params["name"])
        if file is None or file is self._page:
            raise HTTPException(404)
        return await self._respond(request, file)

    async def _respond(self, request: Request, file: _File) -> Response:
        headers = {**_HEADERS, "etag": file.etag}
        known = [tag.strip() for tag in request.headers.get("if-none-match", "").split(",")]
        if file.etag in known or file.etag.removeprefix("W/") in known:
            return Response(status_code=304, headers=headers)
        response = Response(file.body, headers=headers, media_type=file.media_type)
        accept_encoding = request.headers.get("accept-encoding", "")
        return await compress(response, accept_encoding, self._catalog.settings.compress_min_bytes)
