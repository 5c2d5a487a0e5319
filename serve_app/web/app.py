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

from serve_app.access.entrance import Access
from serve_app.access.quota import MemoryLedger
from serve_app.errors import EmbedServeError
from serve_app.service.embed import EmbedService
from serve_app.web.admission import Admission
from serve_app.web.dialects import endpoints, views
from serve_app.web.endpoint import Endpoint, View
from serve_app.web.schema.fields import Scope
from serve_app.web.schema.openapi import openapi
from serve_app.web.schema.docs_page import page
from serve_app.web.handler import Road

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
    service: EmbedService, access: Access | None = None, cors_origins: Sequence[str] = ()
) -> Starlette:
    """The application for one service.

    Args:
        service: what does the work.
        access: who may ask; None: everybody.
        cors_origins: origins whose scripts may ask from a browser; `*`: all.
    """
    access = access or Access(MemoryLedger())
    shown = views()
    road = Road(service, Admission(service, access), endpoints(), shown)
    documented = _Documented(service, access, road.endpoints, shown)
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
                Route(path, _embedding(road, found), methods=["POST"])
                for path, found in road.endpoints.items()
            ),
            *(Route(view.path, _viewing(road, view), methods=[view.method]) for view in shown),
            Route("/openapi.json", documented.as_json),
            Route("/docs", documented.as_page),
        ],
        middleware=[cors] if cors_origins else [],
        exception_handlers={
            EmbedServeError: road.known_error,
            HTTPException: road.http_error,
            ClientDisconnect: road.client_left,
            Exception: road.unknown_error,
        },
    )


class _Documented:
    """What the service says of itself; its limits are those of the moment."""

    def __init__(
        self,
        service: EmbedService,
        access: Access,
        endpoints: Mapping[str, Sequence[Endpoint]],
        views: Sequence[View],
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
    road: Road, candidates: Sequence[Endpoint]
) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        return await road.answer(request, candidates)

    return answer


def _viewing(road: Road, view: View) -> Callable[[Request], Awaitable[Response]]:
    async def show(request: Request) -> Response:
        return await road.show(request, view)

    return show
