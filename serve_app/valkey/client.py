"""A client of Redis or Valkey that fails fast, and what differs between a server and a cluster."""

import asyncio
import contextlib
import functools
import hashlib
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any, Literal, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from redis import exceptions as redis_errors
from redis.asyncio import Redis, RedisCluster, Sentinel
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.backoff import NoBackoff

from serve_app.errors import ConfigurationError

Client = Redis | RedisCluster
FailureKind = Literal["timeout", "connection", "auth", "refused", "other"]

#: More than the store ever uses at once: its reads are bounded, the rest is one writer, one
#: prober, one purge.
_MAX_CONNECTIONS = 16
_PORT = 6379
_SENTINEL_PORT = 26379
_SCHEMES = {
    "redis": "redis",
    "valkey": "redis",
    "rediss": "rediss",
    "valkeys": "rediss",
}
#: What a URL may say after `?`, beside `db`; everything else is decided here.
_TLS_OPTIONS = ("ssl_ca_certs", "ssl_cert_reqs", "ssl_certfile", "ssl_keyfile")
_FORMS = (
    "redis://host:6379/0, rediss://… (TLS), unix:///path/to/socket?db=0, "
    "redis+sentinel://host:26379,host2:26379/<service>/0 or redis+cluster://host:6379"
)


def connect(url: str, password: str | None, timeout_s: float) -> Client:
    """A client that is not connected yet; it connects when it is first asked.

    `password` goes before one in the URL; neither is sent to Sentinels. `timeout_s` is how long
    one Sentinel is waited for; all else is bounded by whoever asks.

    Raises:
        ConfigurationError: The URL can't be read. The message doesn't hold it, it may hold a
            password.
    """
    try:
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
    except ValueError:
        raise _unreadable("it isn't a URL") from None
    base, _, shape = parts.scheme.partition("+")
    known = base in _SCHEMES and shape in ("", "sentinel", "cluster")
    if not known and parts.scheme != "unix":
        raise _unreadable("its scheme is unknown")
    tls = _SCHEMES.get(base) == "rediss"
    if options.keys() - {"db", *(_TLS_OPTIONS if tls else ())}:
        # Without their names: an unescaped `?` in a password would make part of it one.
        raise _unreadable(
            "after `?` it takes `db`, and with TLS "
            + ", ".join(f"`{name}`" for name in _TLS_OPTIONS)
        )
    user, _, hosts = parts.netloc.rpartition("@")
    username, _, url_password = user.partition(":")
    path = [unquote(part) for part in parts.path.split("/")[1:]]
    settings: dict[str, Any] = {
        **{name: value for name, value in options.items() if name != "db"},
        "username": unquote(username) or None,
        "password": password or unquote(url_password) or None,
        "socket_timeout": None,  # the store has one time limit for a whole operation
        "socket_connect_timeout": None,
        "max_connections": _MAX_CONNECTIONS,
        **_plain(),
    }
    if base == "unix":
        if hosts or not parts.path.startswith("/"):
            raise _unreadable("the path of its socket isn't absolute")
        settings["db"] = _database(options.get("db", ""))
        return Redis(unix_socket_path=unquote(parts.path), **settings)
    settings["ssl"] = tls
    if shape == "sentinel":
        service, *path = path or [""]
        settings["db"] = _database(options.get("db", "/".join(path)))
        if not service:
            raise _unreadable("it names no service after the Sentinels")
        return _by_sentinel(_addresses(hosts, _SENTINEL_PORT), service, settings, timeout_s)
    settings["db"] = _database(options.get("db", "/".join(path)))
    return _by_address(_addresses(hosts, _PORT), shape == "cluster", settings)


async def reset_connections(client: Client) -> None:
    """Drops idle connections and what is known of a cluster, so that the next call starts afresh.

    After a failure a pool may hold connections into nowhere, each of which would cost a time-out.
    """
    if isinstance(client, RedisCluster):
        await client.aclose()
    else:
        await client.connection_pool.disconnect(inuse_connections=False)


async def close(client: Client) -> None:
    """Ends all connections, those to Sentinels and to nodes of a half-known cluster too."""
    if isinstance(client, RedisCluster):
        await client.aclose()
        # Which does nothing after a failure, when the client means to look for its nodes again.
        await client.nodes_manager.aclose()
        await client.nodes_manager.aclose("startup_nodes")
        return
    pool = client.connection_pool
    await client.aclose()
    if isinstance(pool, SentinelConnectionPool):
        await pool.sentinel_manager.aclose()


async def ping(client: Client, key: bytes) -> None:
    """Raises unless it answers; of a cluster, unless all primaries do."""
    if isinstance(client, RedisCluster):
        await client.ping(target_nodes=RedisCluster.PRIMARIES)
    else:
        await client.mget([key])  # a user may have the right to read and none to PING


async def mget(client: Client, keys: Sequence[bytes]) -> Sequence[Any]:
    """For each key a value, None, or (of a cluster) an error."""
    if isinstance(client, RedisCluster):
        # Nearly every key has a slot of its own, and an MGET takes one slot.
        return await pipeline(client, [("GET", key) for key in keys])
    return await client.mget(keys)


async def pipeline(client: Client, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Sends commands together, without MULTI; for each its reply or the error it got."""
    together = client.pipeline(transaction=False)
    for command in commands:
        together.execute_command(*command)
    replies: list[Any] = await together.execute(raise_on_error=False)
    return replies


class Script(NamedTuple):
    """One run of a Lua script; all its keys lie in one slot of a cluster."""

    source: str
    keys: Sequence[str]
    args: Sequence[str | int | float]


async def run(client: Client, scripts: Sequence[Script]) -> list[Any]:
    """Runs scripts together; for each its reply or the error it got.

    Their sources are sent only where the server doesn't know them yet.
    """
    rests = [(len(script.keys), *script.keys, *script.args) for script in scripts]
    digests = [_sha1(script.source) for script in scripts]
    known = [("EVALSHA", sha1, *rest) for sha1, rest in zip(digests, rests, strict=True)]
    replies = await pipeline(client, known)
    new = [i for i, r in enumerate(replies) if isinstance(r, redis_errors.NoScriptError)]
    if new:
        again = await pipeline(client, [("EVAL", scripts[i].source, *rests[i]) for i in new])
        for i, reply in zip(new, again, strict=True):
            replies[i] = reply
    return replies


@functools.cache
def _sha1(source: str) -> str:
    return hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


async def primaries(client: Client) -> Sequence[Any]:
    """Those that hold the keys, each with a method `execute_command`."""
    if isinstance(client, RedisCluster):
        await client.initialize()
        return client.get_primaries()
    return [client]


@contextlib.asynccontextmanager
async def deadline(timeout_s: float) -> AsyncIterator[None]:
    """As `asyncio.timeout`, but a reply that lies in the socket already is still taken.

    When something holds the event loop longer than the limit, time-out and reply come in the same
    turn; without the grace of one more a busy process would find its store slow.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as limit:
        # A deadline that lies in the past ends the wait one turn later.
        timer = loop.call_later(timeout_s, limit.reschedule, 0)
        try:
            yield
        finally:
            timer.cancel()


def reply_errors(replies: Sequence[Any]) -> list[Exception]:
    """Those among the replies of a pipeline that stand for a failed command."""
    return [reply for reply in replies if isinstance(reply, Exception)]


def failure_kind(error: BaseException) -> FailureKind:
    """What sort of failure an error is, for counting."""
    if isinstance(error, TimeoutError | redis_errors.TimeoutError):
        return "timeout"
    if isinstance(error.__cause__, Exception):
        deeper = failure_kind(
            error.__cause__
        )  # a failed login may come wrapped in a ConnectionError
        if deeper != "other":
            return deeper
    if isinstance(error, redis_errors.AuthenticationError | redis_errors.AuthorizationError):
        return "auth"
    if isinstance(error, redis_errors.ResponseError | redis_errors.BusyLoadingError):
        return "refused"
    lost = redis_errors.ConnectionError | redis_errors.RedisClusterException | OSError
    return "connection" if isinstance(error, lost) else "other"


def describe_failure(error: BaseException) -> str:
    """What is wrong, without what a server or a library says: some repeat a password."""
    match failure_kind(error):
        case "timeout":
            return "no answer in time"
        case "auth":
            return "its user or password is not accepted"
        case "refused":
            code = getattr(error, "status_code", None) or str(error).partition(" ")[0]
            return f"it answers {code if re.fullmatch('[A-Z]{2,16}', code) else 'an error'}"
        case "connection":
            system = _system_error(error)
            return f"no connection ({system})" if system else "no connection"
        case _:
            return type(error).__name__


def _system_error(error: BaseException | None) -> str | None:
    while error is not None:
        if isinstance(error, OSError) and error.strerror:
            return error.strerror
        error = error.__cause__ or error.__context__
    return None


def _by_address(
    addresses: list[tuple[str, int]], cluster: bool, settings: dict[str, Any]
) -> Client:
    if cluster:
        if settings["db"]:
            raise _unreadable("a cluster has no database but 0")
        nodes = [ClusterNode(host, port) for host, port in addresses]
        return RedisCluster(startup_nodes=nodes, **settings)
    if len(addresses) > 1:
        raise _unreadable("several hosts need `+sentinel` or `+cluster` in the scheme")
    host, port = addresses[0]
    return Redis(host=host, port=port, **settings)


def _by_sentinel(
    addresses: list[tuple[str, int]], service: str, settings: dict[str, Any], timeout_s: float
) -> Redis:
    tls = {name: value for name, value in settings.items() if name.startswith("ssl")}
    # Sentinels are asked in turn, so each needs a limit of its own, or a silent one hides the rest.
    asking = {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s, **tls, **_plain()}
    make: Any = Sentinel
    client: Redis = make(addresses, sentinel_kwargs=asking).master_for(service, **settings)
    return client


def _plain() -> dict[str, Any]:
    return {
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,  # with 3, each new connection says HELLO and asks for notifications
        "driver_info": None,  # or each new connection says CLIENT SETINFO, twice
    }


def _addresses(hosts: str, default_port: int) -> list[tuple[str, int]]:
    addresses = []
    for part in hosts.split(","):
        try:
            address = urlsplit(f"//{part}")
            host, port = address.hostname, address.port
        except ValueError:
            raise _unreadable("a port in it is no number from 1 to 65535") from None
        if not host or port == 0:
            raise _unreadable("a host or port is missing")
        addresses.append((host, default_port if port is None else port))
    return addresses


def _database(text: str) -> int:
    if text and not (text.isascii() and text.isdigit() and len(text) < 6):
        raise _unreadable("its database is no number")
    return int(text or 0)


def _unreadable(why: str) -> ConfigurationError:
    return ConfigurationError(
        f"The URL of the Redis cache can't be used: {why}. Write {_FORMS}; special characters in "
        "a password are percent-encoded (`@` is `%40`, `/` is `%2F`)."
    )
