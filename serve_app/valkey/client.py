"""Redis and Valkey clients that fail fast, for a server, a cluster or Sentinels.

`connect` turns a URL into a client; the functions below it hide what differs between a server and
a cluster. Nothing here retries, or waits longer than its caller allows.
"""

import asyncio
import contextlib
import functools
import hashlib
import re
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Literal, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from redis import exceptions as redis_errors
from redis.asyncio import Connection, ConnectionPool, Redis, RedisCluster, Sentinel
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.backoff import NoBackoff

from serve_app.errors import ConfigurationError
from serve_app.valkey.server_address import ServerAddress

Client = Redis | RedisCluster
FailureKind = Literal["timeout", "connection", "auth", "refused", "other"]

#: More than a process ever uses at once: a few reads, one writer, one probe, one purge.
_MAX_CONNECTIONS = 16
_PORT = 6379
_SENTINEL_PORT = 26379
_SCHEMES = {
    "redis": "redis",
    "valkey": "redis",
    "rediss": "rediss",
    "valkeys": "rediss",
}
#: Query parameters of a TLS URL, in addition to `db`. Everything else is fixed in this module.
_TLS_OPTIONS = ("ssl_ca_certs", "ssl_cert_reqs", "ssl_certfile", "ssl_keyfile")
_URL_FORMS = (
    "redis://host:6379/0, rediss://… (TLS), unix:///path/to/socket?db=0, "
    "redis+sentinel://host:26379,host2:26379/<service>/0 or redis+cluster://host:6379"
)


def connect(url: str, password: str | None, timeout_s: float) -> Client:
    """Returns a client that connects with its first command.

    Args:
        url: of the server, the Sentinels or the cluster.
        password: overrides a password in the URL. Neither is sent to Sentinels.
        timeout_s: time limit of a call to one Sentinel. The caller bounds all other calls.

    Raises:
        ConfigurationError: the URL is invalid. The message leaves the URL out, since it may
            contain a password.
    """
    try:
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
    except ValueError:
        raise _invalid_url("it isn't a URL") from None
    base, _, topology = parts.scheme.partition("+")
    known = base in _SCHEMES and topology in ("", "sentinel", "cluster")
    if not known and parts.scheme != "unix":
        raise _invalid_url("its scheme is unknown")
    tls = _SCHEMES.get(base) == "rediss"
    if options.keys() - {"db", *(_TLS_OPTIONS if tls else ())}:
        # Leave the unknown names out: after an unescaped `?`, a password is parsed as one.
        raise _invalid_url(
            "the only parameters after `?` are `db` and, with TLS, "
            + ", ".join(f"`{name}`" for name in _TLS_OPTIONS)
        )
    user, _, hosts = parts.netloc.rpartition("@")
    username, _, url_password = user.partition(":")
    path = [unquote(part) for part in parts.path.split("/")[1:]]
    settings: dict[str, Any] = {
        **{name: value for name, value in options.items() if name != "db"},
        "username": unquote(username) or None,
        "password": password or unquote(url_password) or None,
        **_client_options(),
    }
    if base == "unix":
        if hosts or not parts.path.startswith("/"):
            raise _invalid_url("the path of the socket isn't absolute")
        settings["db"] = _database(options.get("db", ""))
        return Redis(unix_socket_path=unquote(parts.path), **settings)
    settings["ssl"] = tls
    if topology == "sentinel":
        service, *path = path or [""]
        settings["db"] = _database(options.get("db", "/".join(path)))
        if not service:
            raise _invalid_url("the name of the service is missing after the Sentinels")
        return _sentinel_client(_addresses(hosts, _SENTINEL_PORT), service, settings, timeout_s)
    settings["db"] = _database(options.get("db", "/".join(path)))
    return _direct_client(_addresses(hosts, _PORT), topology == "cluster", settings)


def connect_to(find_address: Callable[[], ServerAddress]) -> Redis:
    """Returns a client of a server whose address may change: each new connection looks it up.

    Args:
        find_address: returns at once; may raise an error of redis-py.
    """
    return Redis.from_pool(
        ConnectionPool(_RelocatableConnection, find_address=find_address, **_client_options())
    )


class _RelocatableConnection(Connection):
    """Looks up the address whenever it connects, as redis-py's connections by Sentinels do."""

    def __init__(self, *, find_address: Callable[[], ServerAddress], **options: Any) -> None:
        super().__init__(**options)
        self._find_address = find_address

    async def connect(self) -> None:
        if not self.is_connected:
            self.host, self.port, self.password = self._find_address()
        await super().connect()  # type: ignore[no-untyped-call]


async def reset_connections(client: Client) -> None:
    """Closes idle connections and forgets the nodes of a cluster.

    After a failure the pool may hold dead connections, each of which would cost a timeout.
    """
    if isinstance(client, RedisCluster):
        await client.aclose()
    else:
        await client.connection_pool.disconnect(inuse_connections=False)


async def close_client(client: Client) -> None:
    """Closes all connections, including those to Sentinels and to cluster nodes."""
    if isinstance(client, RedisCluster):
        await client.aclose()
        # After a failure `aclose` does nothing, since the client expects to rediscover its nodes.
        await client.nodes_manager.aclose()
        await client.nodes_manager.aclose("startup_nodes")
        return
    pool = client.connection_pool
    await client.aclose()
    if isinstance(pool, SentinelConnectionPool):
        await pool.sentinel_manager.aclose()


async def ping(client: Client, key: bytes) -> None:
    """Reads `key`, or in a cluster pings every primary; raises unless all answer."""
    if isinstance(client, RedisCluster):
        await client.ping(target_nodes=RedisCluster.PRIMARIES)
    else:
        await client.mget([key])  # the user's ACL may allow reads and not PING


async def mget(client: Client, keys: Sequence[bytes]) -> Sequence[Any]:
    """Returns for each key a value, None, or in a cluster an error."""
    if isinstance(client, RedisCluster):
        # MGET requires keys of one hash slot, and nearly every key has a different one.
        return await execute_pipeline(client, [("GET", key) for key in keys])
    return await client.mget(keys)


async def execute_pipeline(client: Client, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Sends commands together, without MULTI. Returns a reply or an error for each."""
    pipeline = client.pipeline(transaction=False)
    for command in commands:
        pipeline.execute_command(*command)
    replies: list[Any] = await pipeline.execute(raise_on_error=False)
    return replies


class Script(NamedTuple):
    """One call of a Lua script. In a cluster, all its keys are in one hash slot."""

    source: str
    keys: Sequence[str]
    args: Sequence[str | int | float]


async def run_scripts(client: Client, scripts: Sequence[Script]) -> list[Any]:
    """Runs scripts in one pipeline. Returns a reply or an error for each.

    Sends the source of a script only if the server hasn't cached it.
    """
    arguments = [(len(script.keys), *script.keys, *script.args) for script in scripts]
    digests = [_sha1(script.source) for script in scripts]
    replies = await execute_pipeline(
        client, [("EVALSHA", sha1, *args) for sha1, args in zip(digests, arguments, strict=True)]
    )
    uncached = [i for i, r in enumerate(replies) if isinstance(r, redis_errors.NoScriptError)]
    if uncached:
        evaluated = await execute_pipeline(
            client, [("EVAL", scripts[i].source, *arguments[i]) for i in uncached]
        )
        for i, reply in zip(uncached, evaluated, strict=True):
            replies[i] = reply
    return replies


@functools.cache
def _sha1(source: str) -> str:
    return hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


async def primaries(client: Client) -> Sequence[Any]:
    """Returns the nodes that hold the keys, each with a method `execute_command`."""
    if isinstance(client, RedisCluster):
        await client.initialize()
        return client.get_primaries()
    return [client]


@contextlib.asynccontextmanager
async def deadline(timeout_s: float) -> AsyncIterator[None]:
    """Like `asyncio.timeout`, but accepts a reply that has already reached the socket.

    If the event loop is blocked for longer than the limit, the timeout and the reply are due in
    the same turn. Waiting one more turn lets the reply win, so that a busy process doesn't take
    its own delay for a slow server.

    Raises:
        TimeoutError: the body took longer than `timeout_s`.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as timeout:
        # A deadline in the past expires in the next turn of the loop.
        timer = loop.call_later(timeout_s, timeout.reschedule, 0)
        try:
            yield
        finally:
            timer.cancel()


def reply_errors(replies: Sequence[Any]) -> list[Exception]:
    """Returns the errors among the replies of a pipeline."""
    return [reply for reply in replies if isinstance(reply, Exception)]


def failure_kind(error: BaseException) -> FailureKind:
    """Returns the kind of a failure, for metrics."""
    if isinstance(error, TimeoutError | redis_errors.TimeoutError):
        return "timeout"
    if isinstance(error.__cause__, Exception):
        # redis-py may wrap a failed login in a ConnectionError.
        cause_kind = failure_kind(error.__cause__)
        if cause_kind != "other":
            return cause_kind
    if isinstance(error, redis_errors.AuthenticationError | redis_errors.AuthorizationError):
        return "auth"
    if isinstance(error, redis_errors.ResponseError | redis_errors.BusyLoadingError):
        return "refused"
    unreachable = redis_errors.ConnectionError | redis_errors.RedisClusterException | OSError
    return "connection" if isinstance(error, unreachable) else "other"


def describe_failure(error: BaseException) -> str:
    """Describes a failure without quoting the error, which may repeat a password."""
    match failure_kind(error):
        case "timeout":
            return "no answer in time"
        case "auth":
            return "its user or password is not accepted"
        case "refused":
            code = getattr(error, "status_code", None) or str(error).partition(" ")[0]
            return f"it answers {code if re.fullmatch('[A-Z]{2,16}', code) else 'an error'}"
        case "connection":
            reason = _os_error_text(error)
            return f"no connection ({reason})" if reason else "no connection"
        case _:
            return type(error).__name__


def _os_error_text(error: BaseException | None) -> str | None:
    while error is not None:
        if isinstance(error, OSError) and error.strerror:
            return error.strerror
        error = error.__cause__ or error.__context__
    return None


def _direct_client(
    addresses: list[tuple[str, int]], cluster: bool, settings: dict[str, Any]
) -> Client:
    if cluster:
        if settings["db"]:
            raise _invalid_url("a cluster has only database 0")
        nodes = [ClusterNode(host, port) for host, port in addresses]
        return RedisCluster(startup_nodes=nodes, **settings)
    if len(addresses) > 1:
        raise _invalid_url("several hosts need `+sentinel` or `+cluster` in the scheme")
    host, port = addresses[0]
    return Redis(host=host, port=port, **settings)


def _sentinel_client(
    addresses: list[tuple[str, int]], service: str, settings: dict[str, Any], timeout_s: float
) -> Redis:
    tls = {name: value for name, value in settings.items() if name.startswith("ssl")}
    options = {  # Sentinels are tried in turn: without a limit, a silent one blocks the others
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        **tls,
        **_connection_options(),
    }
    sentinel: Any = Sentinel  # its constructor has no types
    client: Redis = sentinel(addresses, sentinel_kwargs=options).master_for(service, **settings)
    return client


def _client_options() -> dict[str, Any]:
    return {
        "socket_timeout": None,  # callers set one time limit for a whole operation
        "socket_connect_timeout": None,
        "max_connections": _MAX_CONNECTIONS,
        **_connection_options(),
    }


def _connection_options() -> dict[str, Any]:
    return {
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,  # with 3, each new connection sends HELLO and subscribes to notifications
        "driver_info": None,  # otherwise each new connection sends CLIENT SETINFO twice
    }


def _addresses(hosts: str, default_port: int) -> list[tuple[str, int]]:
    addresses = []
    for part in hosts.split(","):
        try:
            address = urlsplit(f"//{part}")
            host, port = address.hostname, address.port
        except ValueError:
            raise _invalid_url("a port isn't a number from 1 to 65535") from None
        if not host or port == 0:
            raise _invalid_url("a host or port is missing")
        addresses.append((host, default_port if port is None else port))
    return addresses


def _database(text: str) -> int:
    if text and not (text.isascii() and text.isdigit() and len(text) < 6):
        raise _invalid_url("the database isn't a number")
    return int(text or 0)


def _invalid_url(reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"The URL of the Redis cache can't be used: {reason}. Use {_URL_FORMS}. Percent-encode "
        "special characters in a password (`@` is `%40`, `/` is `%2F`)."
    )
