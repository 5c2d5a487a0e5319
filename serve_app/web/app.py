"""The HTTP application: binds paths to the handler, and adds documentation and CORS."""

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.access.entrance import Entrance
from serve_app.access.quota import MemoryQuotaStore
from serve_app.service.catalog import Catalog
from serve_app.web.admission import Admission
from serve_app.web.console_files import ConsoleFiles
from serve_app.web.content_encoding import compress
from serve_app.web.dialect import Dialect, DialectEndpoint, DialectView
from serve_app.web.dialects import load_dialects
from serve_app.web.handler import RequestHandler
from serve_app.web.limits import ConcurrencyLimiter
from serve_app.web.schema.docs_page import docs_html
from serve_app.web.schema.fields import SchemaContext
from serve_app.web.schema.openapi import openapi
from serve_app.web.traced_handler import RequestTracer, TracedHandler

_RATE_LIMIT_HEADERS = tuple(
    f"x-ratelimit-{value}-{unit}"
    for value in ("limit", "remaining", "reset")
    for unit in ("requests", "tokens")
)
#: Response headers that scripts in browsers may read.
_EXPOSED_HEADERS = (
    "retry-after",
    *_RATE_LIMIT_HEADERS,
    "server-timing",
    "x-budget-limit-usd",
    "x-budget-remaining-usd",
    "x-cache",
    "x-cost-usd",
    "x-embedding-dtype",
    "x-embedding-model",
    "x-embedding-shape",
    "x-embedding-space",
    "x-embedding-tokens",
    "www-authenticate",
    "x-replaced-inputs",
    "x-request-id",
    "x-truncated-inputs",
)


def create_app(
    catalog: Catalog,
    access: Entrance | None = None,
    cors_origins: Sequence[str] = (),
    dialects: Sequence[Dialect] | None = None,
    tracer: RequestTracer | None = None,
    *,
    console: bool = True,
    limiter: ConcurrencyLimiter | None = None,
) -> ASGIApp:
    """Returns the ASGI application for the models of a catalog.

    Args:
        catalog: the models.
        access: checks API keys; None serves clients without a key.
        cors_origins: origins whose scripts may send requests from browsers, or patterns of them,
            such as `https://*.example.com`; `*` allows all.
        dialects: the dialects to serve; None serves all that are installed.
        tracer: traces requests; None: they aren't traced.
        console: whether to serve the page at `/console`.
        limiter: bounds the requests in progress; None: one that nobody else reads.
    """
    access = access or Entrance(MemoryQuotaStore())
    dialects = load_dialects() if dialects is None else dialects
    handler = (
        RequestHandler(catalog, Admission(access), dialects, limiter)
        if tracer is None
        else TracedHandler(catalog, Admission(access), dialects, tracer, limiter)
    )
    documentation = _Documentation(catalog, access, dialects)
    app = Starlette(
        routes=[
            *(
                Route(path, _endpoint_function(handler, candidates), methods=["POST"])
                for path, candidates in handler.endpoints.items()
            ),
            *(
                Route(route.view.path, _view_function(handler, route), methods=[route.view.method])
                for route in handler.views
            ),
            Route("/openapi.json", documentation.openapi_json),
            Route("/docs", documentation.html_page),
            *(ConsoleFiles(catalog).routes if console else ()),
        ],
        exception_handlers={
            HTTPException: handler.handle_http_exception,
            Exception: handler.handle_unexpected_error,
        },
    )
    app.router.redirect_slashes = False  # several clients don't follow a 307 with a body
    app.router.default = _NormalizedPaths(app.router)
    direct = _DirectRoutes(app, handler)
    return _allow_origins(direct, cors_origins) if cors_origins else direct


def _allow_origins(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """Returns an application that scripts of these origins may call from browsers."""
    patterns = [origin for origin in origins if "*" in origin and origin != "*"]
    return CORSMiddleware(
        app,
        allow_origins=[origin for origin in origins if origin not in patterns],
        allow_origin_regex="|".join(map(_origin_regex, patterns)) or None,
        allow_private_network=True,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=_EXPOSED_HEADERS,
    )


def _origin_regex(pattern: str) -> str:
    """Returns the regular expression of an origin in which `*` stands for one or more labels."""
    return r"[\w.-]+".join(map(re.escape, pattern.split("*")))


class _DirectRoutes:
    """Passes a POST to a fixed path to the handler, without the layers of Starlette around it."""

    def __init__(self, app: ASGIApp, handler: RequestHandler) -> None:
        self._app = app
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        candidates = None
        if scope["type"] == "http" and scope["method"] == "POST":
            candidates = self._handler.endpoints.get(scope["path"])
        if candidates is None:
            await self._app(scope, receive, send)
        else:
            response = await self._handler.handle_endpoint(Request(scope, receive), candidates)
            await response(scope, receive, send)


class _NormalizedPaths:
    """Routes a path that matches no route again, without repeated and trailing slashes."""

    def __init__(self, router: Router) -> None:
        self._router = router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        normalized = re.sub("/{2,}", "/", path).rstrip("/") or "/"
        if normalized == path:
            await self._router.not_found(scope, receive, send)
        else:
            scope["path"] = normalized
            await self._router(scope, receive, send)


class _Documentation:
    """Serves the documentation, generated per request because its limits may be reconfigured."""

    def __init__(self, catalog: Catalog, access: Entrance, dialects: Sequence[Dialect]) -> None:
        self._catalog = catalog
        self._access = access
        self._dialects = dialects

    def _document(self) -> dict[str, Any]:
        context = SchemaContext(
            tuple(service.spec for service in self._catalog.services),
            self._catalog.settings,
            {task: service.spec for task, service in self._catalog.defaults.items()},
            tuple(alias.name for alias in self._catalog.aliases),
        )
        return openapi(context, self._dialects, keys=self._access.required)

    async def openapi_json(self, request: Request) -> Response:
        body = orjson.dumps(self._document())
        return await self._compressed(request, Response(body, media_type="application/json"))

    async def html_page(self, request: Request) -> Response:
        base_url = str(request.base_url).rstrip("/")
        page = docs_html(self._document(), base_url)
        return await self._compressed(request, HTMLResponse(page))

    async def _compressed(self, request: Request, response: Response) -> Response:
        accept_encoding = request.headers.get("accept-encoding", "")
        return await compress(response, accept_encoding, self._catalog.settings.compress_min_bytes)


def _endpoint_function(
    handler: RequestHandler, candidates: Sequence[DialectEndpoint]
) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return await handler.handle_endpoint(request, candidates)

    return endpoint


def _view_function(
    handler: RequestHandler, route: DialectView
) -> Callable[[Request], Awaitable[Response]]:
    async def view(request: Request) -> Response:
        return await handler.handle_view(request, route)

    return view
