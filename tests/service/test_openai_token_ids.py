import sys
from types import SimpleNamespace

import pytest

from serve_app.config import IngressSettings
from serve_app.errors import ConfigurationError, InvalidRequest
from serve_app.jobs import EmbedJob, TokenVectorsJob
from serve_app.service.embed import EmbedService
from serve_app.service.openai_token_ids import TiktokenDecoder
from tests.fakes import SPEC, FakeBackend


class ByteEncoding:
    """An encoding whose ids are bytes."""

    def decode_bytes(self, ids: tuple[int, ...]) -> bytes:
        if max(ids) > 255:
            raise KeyError(ids)
        return bytes(ids)


@pytest.fixture
def encodings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        sys.modules, "tiktoken", SimpleNamespace(get_encoding=lambda name: ByteEncoding())
    )


@pytest.mark.usefixtures("encodings")
async def test_ids_give_the_vectors_of_their_text() -> None:
    backend = FakeBackend()
    service = EmbedService(SPEC, backend, IngressSettings(token_ids="cl100k_base"))
    job = EmbedJob(("a text", tuple(b"another")), input_type="query")
    as_ids = await service.run(job)
    as_text = await service.run(EmbedJob(("a text", "another"), input_type="query"))
    assert as_ids.vectors.tobytes() == as_text.vectors.tobytes()
    await service.run(TokenVectorsJob(job))
    assert [group.texts for group in backend.groups] == [("a text", "another")] * 3


@pytest.mark.usefixtures("encodings")
def test_ids_that_split_a_character_decode_with_a_replacement() -> None:
    assert TiktokenDecoder("cl100k_base").decode(tuple("é!".encode()[1:])) == "\ufffd!"


@pytest.mark.usefixtures("encodings")
@pytest.mark.parametrize("ids", [(256,), (97, 2**70)])
def test_ids_outside_the_encoding_are_an_error(ids: tuple[int, ...]) -> None:
    with pytest.raises(InvalidRequest, match="not all of cl100k_base"):
        TiktokenDecoder("cl100k_base").decode(ids)


def test_without_tiktoken_the_error_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(ConfigurationError, match=r"embedserve\[tiktoken\]"):
        EmbedService(SPEC, FakeBackend(), IngressSettings(token_ids="o200k_base"))


def test_without_network_the_error_names_the_cache_directory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unreachable(name: str) -> None:
        raise ConnectionError(name)

    monkeypatch.setitem(sys.modules, "tiktoken", SimpleNamespace(get_encoding=unreachable))
    with pytest.raises(ConfigurationError, match="TIKTOKEN_CACHE_DIR"):
        TiktokenDecoder("o200k_base")
