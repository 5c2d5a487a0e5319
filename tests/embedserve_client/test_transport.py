import httpx2
import pytest

from embedserve_client.errors import EmbedError, NetworkError, ParseError, RequestTimeoutError
from embedserve_client.transport import map_error

REQUEST = httpx2.Request("POST", "http://host:1/path")


def subclasses(base: type[Exception]) -> list[type[Exception]]:
    return [base, *(cls for child in base.__subclasses__() for cls in subclasses(child))]


@pytest.mark.parametrize("cls", subclasses(httpx2.TransportError), ids=lambda cls: cls.__name__)
def test_all_transport_errors_are_mapped(cls: type[httpx2.TransportError]) -> None:
    mapped = map_error(cls("reason", request=REQUEST))
    assert isinstance(mapped, NetworkError | RequestTimeoutError)


def test_connect_timeout_is_a_network_error_and_read_timeout_is_not() -> None:
    expected: list[tuple[httpx2.HTTPError, type[EmbedError]]] = [
        (httpx2.ConnectError("x", request=REQUEST), NetworkError),
        (httpx2.ConnectTimeout("x", request=REQUEST), NetworkError),
        (httpx2.ReadTimeout("x", request=REQUEST), RequestTimeoutError),
        (httpx2.RemoteProtocolError("x", request=REQUEST), NetworkError),
        (httpx2.DecodingError("x", request=REQUEST), ParseError),
    ]
    for error, cls in expected:
        assert type(map_error(error)) is cls
