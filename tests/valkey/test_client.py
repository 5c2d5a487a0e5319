import pytest
from redis.asyncio import Redis, SSLConnection

from serve_app.errors import ConfigurationError
from serve_app.valkey.client import connect


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "scheme"),
        ("http://:geheim@host", "scheme"),
        ("geheim", "scheme"),
        ("redis+other://:geheim@host", "scheme"),
        ("unix+cluster:///tmp/geheim", "scheme"),
        ("redis://", "host"),
        ("redis://:geheim@:6379", "host"),
        ("redis://user:geheim@host:port", "port"),
        ("redis://user:geheim@host:70000", "port"),
        ("redis://user:ge/heim@host", "database"),
        ("redis://user:ge?heim=1@host", "after `?`"),
        ("redis://user:ge?heim@host", "URL"),
        ("redis://[geheim", "URL"),
        ("redis://:geheim@host/geheim", "database"),
        ("redis://:geheim@host?db=geheim", "database"),
        ("redis://:geheim@host?decode_responses=geheim", "after `?`"),
        ("redis://:geheim@host?ssl_ca_certs=geheim", "after `?`"),
        ("redis://:geheim@host,other", "several hosts"),
        ("unix://:geheim@relative/path", "absolute"),
        ("redis+sentinel://:geheim@host:26379", "service"),
        ("redis+sentinel://:geheim@host:26379/main/geheim", "database"),
        ("redis+cluster://:geheim@host/1", "database"),
    ],
)
def test_an_invalid_url_is_reported_without_its_password(url: str, reason: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        connect(url, "auch geheim", 0.05)
    assert reason in str(raised.value)
    assert "heim" not in str(raised.value)
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__ or raised.value.__context__ is None


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("valkey://host", {"host": "host", "port": 6379, "db": 0}),
        ("redis://[::1]:7000/3", {"host": "::1", "port": 7000, "db": 3}),
        ("redis://u%40:p%2Fw@host?db=2", {"username": "u@", "password": "p/w", "db": 2}),
        ("unix:///run/a%20b.sock?db=4", {"path": "/run/a b.sock", "db": 4}),
    ],
)
def test_a_url_is_parsed(url: str, expected: dict[str, object]) -> None:
    client = connect(url, None, 0.05)
    assert isinstance(client, Redis)
    assert expected.items() <= client.connection_pool.connection_kwargs.items()


def test_the_scheme_selects_tls() -> None:
    client = connect("valkeys://host?ssl_ca_certs=/ca.pem", "word", 0.05)
    assert isinstance(client, Redis)
    assert client.connection_pool.connection_class is SSLConnection
    assert client.connection_pool.connection_kwargs["password"] == "word"
    assert client.connection_pool.connection_kwargs["ssl_ca_certs"] == "/ca.pem"
