from pathlib import Path

import pytest

from serve_app.config import MINILM
from serve_app.errors import ModelSourceError
from serve_app.sources import (
    SOURCES,
    AzureSource,
    CohereSource,
    CompatibleSource,
    FolderSource,
    HashingParameters,
    HashingSource,
    HubSource,
    OpenAISource,
    PackageSource,
    VoyageSource,
    parse_source,
)


def test_each_kind_of_source_is_parsed() -> None:
    commit = "0" * 40
    assert parse_source("package:some_module") == PackageSource("some_module")
    assert parse_source("path:/a:b") == FolderSource("/a:b")
    assert parse_source("hub:org/name", commit) == HubSource("org/name", commit)
    assert parse_source("hashing:64") == HashingSource("64")
    assert parse_source("openai:text-embedding-3-small") == OpenAISource("text-embedding-3-small")
    assert parse_source("azure:my-deployment") == AzureSource("my-deployment")
    assert parse_source("cohere:embed-v4.0") == CohereSource("embed-v4.0")
    assert parse_source("voyage:voyage-4") == VoyageSource("voyage-4")
    assert parse_source("compatible:org/model:tag") == CompatibleSource("org/model:tag")


@pytest.mark.parametrize(
    "text", ["", "hub:", "org/name", "openai:", "azure:a/b", "hashing:7", "hashing:x"]
)
def test_a_malformed_source_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="`source"):
        parse_source(text)


def test_the_error_for_an_unknown_kind_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="one of `package:`, `path:`, `hub:`, `hashing:`"):
        parse_source("ftp:model")
    assert [*SOURCES] == [
        *("package", "path", "hub", "hashing"),
        *("openai", "azure", "cohere", "voyage", "compatible"),
    ]


def test_files_resolve_to_a_directory_and_hashing_to_its_parameters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    package = MINILM.parsed_source.resolve()
    assert isinstance(package, Path)
    assert (package / "modules.json").is_file()
    monkeypatch.setenv("HOME", "/home/somebody")
    assert parse_source("path:~/model").resolve() == Path("/home/somebody/model")
    assert parse_source("hashing:64").resolve() == HashingParameters(64)


def test_a_source_that_cannot_be_resolved_says_how_to_mend_it() -> None:
    with pytest.raises(ModelSourceError, match="pip install no-such-package"):
        parse_source("package:no_such_package").resolve()
    with pytest.raises(ModelSourceError, match=r"needs `model\.revision`"):
        parse_source("hub:org/name").resolve()
