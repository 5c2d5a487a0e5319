"""Keepalive between replicas: calls to a machine that has vanished fail within seconds.

The kernel of a machine whose processes die closes their connections. A machine that loses power or
its network says nothing: a call in flight then waits for Ray's keepalive, of five minutes.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

from ray.serve._private import replica
from ray.serve._private.request_router import replica_wrapper

_PING_AFTER_MS = 4_000
#: Ample for a replica that shares its CPU: gRPC answers pings in a thread of its own.
_PING_TIMEOUT_MS = 6_000
#: Of the caller: pings go on while a replica computes and sends nothing.
_CLIENT_OPTIONS = (
    ("grpc.keepalive_time_ms", _PING_AFTER_MS),
    ("grpc.keepalive_timeout_ms", _PING_TIMEOUT_MS),
    ("grpc.http2.max_pings_without_data", 0),
)
#: Of the replica: by default it closes a connection with more than two such pings in five minutes.
_SERVER_OPTIONS = (
    ("grpc.http2.min_ping_interval_without_data_ms", _PING_AFTER_MS // 2),
    ("grpc.http2.max_ping_strikes", 0),
)


def use_keepalive() -> None:
    """Sets the keepalive for the replicas and the handles of this process. Idempotent.

    Ray has settings for neither side. It reads both functions when it creates a replica's server,
    and a handle's first connection.
    """
    for module, name, options in (
        (replica_wrapper, "init_grpc_channel", _CLIENT_OPTIONS),
        (replica, "create_grpc_server_with_interceptors", _SERVER_OPTIONS),
    ):
        create = getattr(module, name)
        if not hasattr(create, "__wrapped__"):
            setattr(module, name, _with_options(create, options))


def _with_options(
    create: Callable[..., Any], added: tuple[tuple[str, int], ...]
) -> Callable[..., Any]:
    @wraps(create)
    def create_with_options(*args: Any, options: Any = None, **kwargs: Any) -> Any:
        return create(*args, options=[*added, *(options or ())], **kwargs)

    return create_with_options
