"""The HTTP application: which paths there are, and what answers on each."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from serve_app.access.entrance import Entrance
from serve_app.access.quota import MemoryQuotaStore
from serve_app.errors import EmbedServeError
from serve_app.service.embed import EmbedService
from serve_app.web.admission import Admission
from serve_app.web.dialects import endpoints, views
from serve_app.web.endpoint import Endpoint, ViewRoute
from serve_app.web.handler import RequestHandler
from serve_app.web.schema.docs_page import page
from serve_app.web.schema.fields import Scope
from serve_app.web.schema.openapi import openapi

_RATES = ("limit", "remaining", "reset")
#: What a script in a browser may read of a reply's headers.
_EXPOSED = (
    "retry-after",
    *(f"x-ratelimit-{what}-{of}" for what in _RATES for of in ("requests", "tokens")),
    "server-timing",
    "x-cache",
    "x-embedding-dtype",
    "x-embedding-model",
    "x-embedding-shape",
    "x-embedding-space",
    "x-embedding-tokens",
    "x-request-id",
    "x-truncated-inputs",
)


def create_app(
    service: EmbedService, access: Entrance | None = None, cors_origins: Sequence[str] = ()
) -> Starlette:
    """The application for one service.

    Args:
        service: what does the work.
        access: who may ask; None: everybody.
        cors_origins: origins whose scripts may ask from a browser; `*`: all.
    """
    access = access or Entrance(MemoryQuotaStore())
    shown = views()
    handler = RequestHandler(service, Admission(service, access), endpoints(), shown)
    documented = _Documented(service, access, handler.endpoints, shown)
    cors = Middleware(
        CORSMiddleware,
        allow_origins=list(cors_origins),
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=_EXPOSED,
    )
    return Starlette(
        routes=[
            *(
                Route(path, _embedding(handler, found), methods=["POST"])
                for path, found in handler.endpoints.items()
            ),
            *(Route(view.path, _viewing(handler, view), methods=[view.method]) for view in shown),
            Route("/openapi.json", documented.as_json),
            Route("/docs", documented.as_page),
        ],
        middleware=[cors] if cors_origins else [],
        exception_handlers={
            EmbedServeError: handler.known_error,
            HTTPException: handler.http_error,
            ClientDisconnect: handler.client_left,
            Exception: handler.unknown_error,
        },
    )


class _Documented:
    """What the service says of itself; its limits are those of the moment."""

    def __init__(
        self,
        service: EmbedService,
        access: Entrance,
        endpoints: Mapping[str, Sequence[Endpoint]],
        views: Sequence[ViewRoute],
    ) -> None:
        self._service = service
        self._access = access
        self._endpoints = endpoints
        self._views = views

    def _document(self) -> dict[str, Any]:
        scope = Scope(self._service.spec, self._service.settings)
        return openapi(scope, self._endpoints, self._views, keys=self._access.required)

    async def as_json(self, request: Request) -> Response:
        return Response(orjson.dumps(self._document()), media_type="application/json")

    async def as_page(self, request: Request) -> Response:
        address = str(request.base_url).rstrip("/")
        return HTMLResponse(page(self._document(), address))


def _embedding(
    handler: RequestHandler, candidates: Sequence[Endpoint]
) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        return await handler.answer(request, candidates)

    return answer


def _viewing(handler: RequestHandler, view: ViewRoute) -> Callable[[Request], Awaitable[Response]]:
    async def show(request: Request) -> Response:
        return await handler.show(request, view)

    return show
