"""What a client learns about a path or a method that matches no route."""

from collections.abc import Sequence
from difflib import get_close_matches

from starlette.requests import Request
from starlette.routing import Match, Route

from serve_app.web.endpoint import documented_path

_PATH_SIMILARITY = 0.7  #: difflib's ratio from which a 404 names the most similar path


def not_found_message(request: Request) -> str:
    """Returns the message of a 404, which names the most similar path that is served."""
    path = request.url.path
    served = [documented_path(route.path) for route in request.app.routes]
    similar = get_close_matches(path, served, n=1, cutoff=_PATH_SIMILARITY)
    hint = f" The nearest route is {similar[0]}." if similar else ""
    return f"Nothing is served at {path}.{hint}"


def allowed_methods(request: Request) -> str:
    """Returns the methods of all routes with the path of the first match, as `Allow` lists them."""
    routes = matching_routes(request)
    methods = [route.methods or set() for route in routes if route.path == routes[0].path]
    return ", ".join(sorted(set().union(*methods)))


def matching_routes(request: Request) -> list[Route]:
    """Returns the routes of the request's path, whatever their methods."""
    routes: Sequence[Route] = request.app.routes
    return [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
