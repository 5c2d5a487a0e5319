import httpx2
import pytest

from embedserve_client.errors import EmbedError, NetworkError, ParseError, Timeout
from embedserve_client.transport import mapped

REQUEST = httpx2.Request("POST", "http://host:1/path")


def kinds(base: type[Exception]) -> list[type[Exception]]:
    return [base, *(kind for child in base.__subclasses__() for kind in kinds(child))]


@pytest.mark.parametrize("kind", kinds(httpx2.TransportError), ids=lambda kind: kind.__name__)
def test_whatever_the_library_raises_has_a_word_of_ours(kind: type[httpx2.TransportError]) -> None:
    found = mapped(kind("reason", request=REQUEST))
    assert isinstance(found, NetworkError | Timeout)


def test_nobody_there_is_told_from_somebody_slow() -> None:
    expected: list[tuple[httpx2.HTTPError, type[EmbedError]]] = [
        (httpx2.ConnectError("x", request=REQUEST), NetworkError),
        (httpx2.ConnectTimeout("x", request=REQUEST), NetworkError),
        (httpx2.ReadTimeout("x", request=REQUEST), Timeout),
        (httpx2.RemoteProtocolError("x", request=REQUEST), NetworkError),
        (httpx2.DecodingError("x", request=REQUEST), ParseError),
    ]
    for error, kind in expected:
        assert type(mapped(error)) is kind
