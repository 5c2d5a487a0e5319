from dataclasses import replace
from pathlib import Path

import pytest

from embedserve_client.command.main import main
from serve_app.command import prepare
from serve_app.command.ports import free_port
from serve_app.config import MINILM, AppConfig, settings_markdown
from serve_app.model_prep.engine_selection import EngineSelection, select_engines
from serve_app.types import Parity
from tests.fakes import SPEC

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "serve_config.yaml")


def test_prepare_prints_the_selection(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", CONFIG]) == 0
    output = capsys.readouterr().out
    assert f"{MINILM.name}, 384 dimensions, 256 tokens" in output
    assert str(MINILM.sha256)[:16] in output
    (selection,) = select_engines(AppConfig())
    assert selection.spec.space_id in output
    assert f"{selection.engine} at {selection.precision}" in output


def test_prepare_prints_rejected_engines_with_the_reason(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    selection = EngineSelection(MINILM, SPEC, "openvino", "fp32")
    with_rejection = replace(
        selection, parity=Parity("fp32", 50, 0.9999999), rejected=("x at bf16: no",)
    )
    monkeypatch.setattr(prepare, "iter_engines", lambda config: iter([with_rejection]))
    assert main(["prepare", CONFIG]) == 0
    output = capsys.readouterr().out
    assert "openvino at fp32" in output
    assert "cosine >= 0.9999999 over 50 texts" in output
    assert "rejected  x at bf16: no" in output


def test_prepare_prints_each_of_several_models(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        "applications: [{name: e, import_path: 'serve_app.app:build', args: {models: ["
        "{name: words, source: 'hashing:64'}, {name: others, source: 'hashing:32'}]}}]",
        encoding="utf-8",
    )
    assert main(["prepare", str(file)]) == 0
    output = capsys.readouterr().out
    assert "2 models" in output
    assert "1/2  words, 64 dimensions" in output
    assert "2/2  others, 32 dimensions" in output


def test_prepare_with_another_checksum_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.yaml"
    text = Path(CONFIG).read_text(encoding="utf-8")
    file.write_text(text.replace(str(MINILM.sha256), "ab" * 32), encoding="utf-8")
    assert main(["prepare", str(file)]) == 1
    assert "don't match `model.sha256`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("a: [", "not a valid configuration"),
        ("nonsense: 1", "applications: Field required"),
        ("applications: []", "not a valid configuration"),
        (
            "applications: [{name: e, import_path: 'a:b', args: {modell: 1}}]",
            "modell",
        ),
        (
            "applications: [{name: e, import_path: 'a:b', deployments: "
            "[{name: Embedder, user_config: {budget: 1}}]}]",
            "Embedder: user_config: budget: there is no such setting",
        ),
        (
            "applications: [{name: e, import_path: 'a:b', deployments: "
            "[{name: Embedder, user_config: {budget_tokens: 1}}]}]",
            "Embedder: user_config: `budget_tokens` is now called `max_batch_tokens`",
        ),
        (
            "applications: [{name: e, import_path: 'a:b', deployments: [{name: Reranker}]}]",
            "'Reranker' is no deployment of the application, which has Ingress, CacheLookup, "
            "Embedder. Correct the name, or set `deployment: Reranker`",
        ),
        (
            "applications: [{name: e, import_path: 'a:b', args: {models: [{name: w, "
            "source: 'hashing:8', deployment: Words}]}, deployments: [{name: Words, user_config: "
            "{budget: 1}}]}]",
            "Words: user_config: budget: there is no such setting",
        ),
        (
            "applications: [{name: e, import_path: 'a:b', args: {cache: {lease_s: 1}}}]",
            "args: cache: `lease_s` was removed",
        ),
    ],
    ids=[
        "missing",
        "not YAML",
        "incomplete",
        "no application",
        "args",
        "user_config",
        "deployment",
        "user_config of a named deployment",
        "renamed",
        "removed",
    ],
)
def test_an_invalid_configuration_is_a_one_line_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, message: str
) -> None:
    file = tmp_path / "config.yaml"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    assert main(["serve", str(file)]) == 1
    output = capsys.readouterr().err
    assert message in output
    assert len(output.splitlines()) == 1


def test_a_port_in_use_is_an_error_before_anything_starts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", free_port()))
        listener.listen()
        port = listener.getsockname()[1]
        assert main(["serve", CONFIG, "--port", str(port)]) == 1
    assert f"Port {port} is in use" in capsys.readouterr().err


def test_settings_prints_the_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings"]) == 0
    assert capsys.readouterr().out == settings_markdown()
