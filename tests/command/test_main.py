import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from embedserve_client.command.main import main
from serve_app import __version__
from serve_app.command import main as cli
from serve_app.command.serve import free_port
from serve_app.config import MINILM, AppConfig, settings_markdown
from serve_app.model_prep.engine_selection import EngineSelection, select_engine
from serve_app.types import Parity
from tests.fakes import SPEC

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "serve_config.yaml")


def test_prepare_shows_what_will_be_served(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", CONFIG]) == 0
    shown = capsys.readouterr().out
    assert f"{MINILM.name}, 384 dimensions, 256 tokens" in shown
    assert str(MINILM.sha256)[:16] in shown
    choice = select_engine(AppConfig())
    assert choice.spec.space_id in shown
    assert f"{choice.config.engine} at {choice.config.precision}" in shown


def test_prepare_shows_what_was_refused_and_why(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = EngineSelection(AppConfig(engine="openvino", precision="fp32"), SPEC)
    refusing = replace(choice, parity=Parity("fp32", 50, 0.9999999), refused=("x at bf16: no",))
    monkeypatch.setattr(cli, "select_engine", lambda config: refusing)
    assert main(["prepare", CONFIG]) == 0
    shown = capsys.readouterr().out
    assert "openvino at fp32" in shown
    assert "cosine 0.9999999 at the least, over 50 texts" in shown
    assert "refused  x at bf16: no" in shown


def test_prepare_refuses_other_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.yaml"
    text = Path(CONFIG).read_text(encoding="utf-8")
    file.write_text(text.replace(str(MINILM.sha256), "ab" * 32), encoding="utf-8")
    assert main(["prepare", str(file)]) == 1
    assert "not the ones that were asked for" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        ("a: [", "not a valid configuration"),
        ("nonsense: 1", "nonsense"),
        ("applications: []", "not a valid configuration"),
        (
            "applications: [{name: e, import_path: 'a:b', args: {modell: 1}}]",
            "modell",
        ),
        (
            "applications: [{name: e, import_path: 'a:b', deployments: "
            "[{name: Embedder, user_config: {budget: 1}}]}]",
            "budget",
        ),
    ],
    ids=["missing", "not YAML", "unknown key", "no application", "args", "user_config"],
)
def test_a_bad_configuration_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, words: str
) -> None:
    file = tmp_path / "config.yaml"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    assert main(["serve", str(file)]) == 1
    shown = capsys.readouterr().err
    assert words in shown
    assert "Traceback" not in shown


def test_a_port_in_use_is_told_before_anything_starts(capsys: pytest.CaptureFixture[str]) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port()))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", CONFIG, "--port", str(port)]) == 1
    assert f"Port {port} is in use" in capsys.readouterr().err


def test_settings_are_the_trees_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings"]) == 0
    assert capsys.readouterr().out == settings_markdown()


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["serve", "--help"]])
def test_the_installed_command_explains_itself(arguments: list[str]) -> None:
    command = Path(sys.executable).parent / "embedserve"
    shown = subprocess.run([command, *arguments], capture_output=True, text=True, check=True)
    assert __version__ in shown.stdout or "usage: embedserve" in shown.stdout
