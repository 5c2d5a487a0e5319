"""Selects the service that answers a request: that of its model, or one of those of its alias."""

from collections.abc import Mapping
from typing import Any

from serve_app.service.alias import Alias, Requester
from serve_app.service.catalog import Catalog
from serve_app.service.embed import EmbedService
from serve_app.tasks import Task
from serve_app.web.exchange import Exchange
from serve_app.web.request_headers import require_space, unfold


def select_service(
    catalog: Catalog,
    exchange: Exchange,
    headers: Mapping[str, str],
    name: str | None,
    task: Task | None = None,
) -> EmbedService:
    """Returns the service that answers a request, and notes it in the exchange.

    Args:
        catalog: the models.
        exchange: the request, whose key is known.
        headers: of the request.
        name: of a model or an alias; None: the default model of the task.
        task: what the model must support; None: anything.

    Raises:
        ModelNotFound, UnsupportedOperation: see `Catalog.resolve`.
        SpaceConflict: the model's vectors can't be compared with those that the client requires.
    """
    service = exchange.service = catalog.resolve(name, task)
    alias = exchange.alias = catalog.alias(name, task)
    if alias is not None:
        service = exchange.service = _of_alias(alias, exchange, headers)
    require_space(headers.get("x-embedding-space"), service.spec.space_id)
    return service


def model_of_client(
    catalog: Catalog, exchange: Exchange, headers: Mapping[str, str], arguments: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Returns a view's arguments whose `model` is no alias of two models.

    In its place, it is the name of the model that answers this client.
    """
    alias = catalog.alias(arguments.get("model"), "embed")
    if alias is None:
        return arguments
    return {**arguments, "model": _of_alias(alias, exchange, headers).spec.name}


def _of_alias(alias: Alias, exchange: Exchange, headers: Mapping[str, str]) -> EmbedService:
    space = headers.get("x-embedding-space")
    required = None if space is None else unfold(space)
    return alias.select(Requester(exchange.key, client_address(exchange, headers), required))


def client_address(exchange: Exchange, headers: Mapping[str, str]) -> str:
    """Returns the address of the client, without a port; empty: unknown.

    It is the first one in `x-forwarded-for`, where a proxy has set it. The client could have set it
    too, so it must decide nothing that a client may not choose.
    """
    forwarded = headers.get("x-forwarded-for", "").partition(",")[0].strip()
    if not forwarded:
        client = exchange.request.client
        return "" if client is None else client.host
    if forwarded.startswith("["):  # [2001:db8::1]:443
        return forwarded[1:].partition("]")[0]
    host, _, port = forwarded.partition(":")
    return forwarded if ":" in port else host
