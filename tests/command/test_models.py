"""`embedserve models list | prepare | remove | verify`."""

import json
import sys
from pathlib import Path

import pytest

from embedserve_client.command.main import main
from serve_app.command import prepare
from serve_app.config import MINILM
from serve_app.model_prep.artifact import Artifact, write_manifest
from serve_app.model_prep.engine_selection import EngineSelection
from tests.fakes import SPEC

CONFIG = str(Path(__file__).parents[2] / "serve_config.yaml")


def add(folder: Path, model: str) -> Artifact:
    """Adds a prepared model without building it."""
    folder.mkdir(parents=True)
    (folder / "openvino_model.bin").write_bytes(bytes(1 << 20))
    write_manifest(folder)
    artifact = Artifact(folder)
    artifact.label(
        {"model": model, "space": "f00d-bf16", "engine": "openvino", "precision": "bf16"}
    )
    return artifact


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "embedserve" / "prepared"


def test_list_prints_each_prepared_model(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add(cache / "one", "org/small")
    assert main(["models", "list"]) == 0
    printed = capsys.readouterr().out
    for word in ("one", "org/small", "f00d-bf16", "openvino", "bf16", "1.0 MiB below"):
        assert word in printed
    assert main(["models", "list", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry.keys() == {
        *("id", "kind", "model", "space", "engine", "precision", "size_bytes"),
        *("built", "used", "in_use", "path"),
    }
    assert (entry["model"], entry["precision"]) == ("org/small", "bf16")
    assert entry["size_bytes"] > 1 << 20
    assert (entry["in_use"], entry["path"]) == (False, str(cache / "one"))


def test_an_empty_cache_is_an_empty_list(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.parametrize("name", ["org/small", "small", "one"])
def test_remove_by_name(cache: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    first, second = add(cache / "one", "org/small"), add(cache / "two", "org/large")
    assert main(["models", "remove", name, "--yes"]) == 0
    assert "removed one, 1.0 MiB" in capsys.readouterr().out
    assert (first.folder.exists(), second.folder.exists()) == (False, True)


def test_remove_all_but_what_is_in_use(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = add(cache / "one", "org/small"), add(cache / "two", "org/large")
    second.hold()
    assert main(["models", "remove", "--all", "--yes"]) == 1
    assert "two is in use and stays" in capsys.readouterr().err
    assert (first.folder.exists(), second.folder.exists()) == (False, True)


@pytest.mark.parametrize(("answer", "removed"), [("y", True), ("n", False), ("", False)])
def test_remove_asks(
    cache: Path, monkeypatch: pytest.MonkeyPatch, answer: str, removed: bool
) -> None:
    artifact = add(cache / "one", "org/small")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: answer)
    assert main(["models", "remove", "--all"]) == (0 if removed else 1)
    assert artifact.folder.exists() is not removed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "pass --all"),
        (["small", "--all"], "pass --all"),
        (["small"], "Pass --yes"),
        (["large", "--yes"], "There are: org/small"),
    ],
)
def test_remove_refuses(
    cache: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    artifact = add(cache / "one", "org/small")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    assert main(["models", "remove", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert artifact.folder.exists()


def test_verify_says_what_is_damaged(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = add(cache / "one", "org/small")
    add(cache / "two", "org/large")
    assert main(["models", "verify"]) == 0
    (artifact.folder / "openvino_model.bin").write_bytes(b"0")
    assert main(["models", "verify", "large"]) == 0
    capsys.readouterr()
    assert main(["models", "verify"]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert sorted(printed) == [
        "one: openvino_model.bin has changed since it was written.",
        "two: intact",
    ]
    assert main(["models", "verify", "--json", "small"]) == 1
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["damage"] == ["openvino_model.bin has changed since it was written."]


def test_prepare_does_what_the_command_prepare_does(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    selection = EngineSelection(MINILM, SPEC, "openvino", "fp32")
    monkeypatch.setattr(prepare, "iter_engines", lambda config: iter([selection]))
    assert main(["models", "prepare", CONFIG]) == 0
    assert "openvino at fp32" in capsys.readouterr().out


def test_without_the_service_the_error_names_the_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("embedserve_client.command.main.entry_points", lambda group: [])
    assert main(["models", "list"]) == 1
    assert "pip install embedserve" in capsys.readouterr().err


def test_predefined_prints_prices_with_their_date_and_source(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["models", "predefined"]) == 0
    assert "text-embedding-3-small" in capsys.readouterr().out
    assert main(["models", "predefined", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    small = rows["text-embedding-3-small"]
    assert (small["dimension"], small["usd_per_1k_tokens"]) == (1536, "0.00002")
    assert small["from"].startswith("https://")
    assert rows["all-MiniLM-L6-v2"]["usd_per_1k_tokens"] is None
