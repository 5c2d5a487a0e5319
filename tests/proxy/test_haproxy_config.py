"""What the completion changes in the text of a configuration."""

import pytest

from serve_app.proxy.haproxy_config import (
    complete,
    has_application,
    http_address,
    with_inherited_listener,
)

#: The sections of Ray's configuration in short, for an application named `batch-reads`.
CONFIG = """global
    maxconn 4096
defaults
    option splice-request
    errorfile 502 /tmp/500.http
frontend http_frontend
    bind 127.0.0.1:8000
    use_backend http-batch-reads if is_http-batch-reads
    default_backend default_backend
backend default_backend
    http-request return status 404
backend http-batch-reads
    option httpchk GET /-/healthz
    server replica 127.0.0.1:30000 check observe layer4
"""


def test_the_name_of_an_application_does_not_matter() -> None:
    completed = complete(CONFIG)
    assert "splice" not in completed
    assert "backend http-batch-reads-reads\n" in completed
    assert "server replica 127.0.0.1:30000 track http-batch-reads/replica\n" in completed


def test_a_complete_configuration_stays_as_it_is() -> None:
    completed = complete(CONFIG)
    assert complete(completed) == completed


def test_haproxy_inherits_the_socket_of_http_only() -> None:
    config = complete(CONFIG + "listen stats\n    bind *:8404\n")
    inherited = with_inherited_listener(config)
    assert http_address(config) == ("127.0.0.1", 8000)
    assert "    bind fd@${EMBEDSERVE_HAPROXY_LISTENER}\n" in inherited
    assert "    bind *:8404\n" in inherited
    assert http_address(inherited) is None


@pytest.mark.parametrize(
    ("bind", "address"), [("[::]:80", ("::", 80)), (":::80", ("::", 80)), ("*:80", ("*", 80))]
)
def test_addresses_of_http(bind: str, address: tuple[str, int]) -> None:
    assert http_address(f"frontend http_frontend\n    bind {bind}\n") == address


def test_a_configuration_of_ray_has_an_application_or_none() -> None:
    assert has_application(complete(CONFIG))
    assert not has_application(complete(CONFIG.replace("    use_backend", "    #")))
