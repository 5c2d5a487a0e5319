import io
import re
from pathlib import Path

import pytest
import yaml

from embedserve_client.command.main import main
from serve_app.access.keys import KeyRing, digest, generate_key
from serve_app.command import key as key_command
from serve_app.command import main as cli
from serve_app.config import AccessSettings

ROOT = Path(__file__).parents[2]


class Typed(io.StringIO):
    """Somebody at a keyboard."""

    def isatty(self) -> bool:
        return True


def test_a_new_key_fits_the_entry_that_is_printed_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--models", "small", "large", "--lane", "bulk", "--requests-per-minute", "60"]
    limits = ["--tokens-per-minute", "1000", "--concurrent-tokens", "500"]
    assert main(["key", "new", "alice", *words, *limits]) == 0
    shown = capsys.readouterr()
    (key,) = re.findall(r"es-[\w-]{43}", shown.err)
    assert key not in shown.out
    file = tmp_path / "keys.yaml"
    file.write_text(f"keys:\n{shown.out}", "utf-8")
    ring = KeyRing()
    ring.apply(AccessSettings(keys_file=str(file)))
    found = ring.find(key)
    assert found is not None
    assert found.model_dump(exclude={"sha256"}) == {
        "name": "alice",
        "models": ("small", "large"),
        "lane": "bulk",
        "requests_per_minute": 60,
        "tokens_per_minute": 1000,
        "concurrent_tokens": 500,
    }


def test_an_entry_says_only_what_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", "new", "2024"]) == 0
    (entry,) = yaml.safe_load(capsys.readouterr().out)
    assert entry.keys() == {"name", "sha256"}
    assert entry["name"] == "2024"


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["al ice"], "name: String should match pattern"),
        (["alice", "--requests-per-minute", "0"], "requests_per_minute: Input should be greater"),
    ],
)
def test_what_cannot_be_an_entry_is_not_made(
    words: list[str], fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["key", "new", *words]) == 1
    shown = capsys.readouterr()
    assert fault in shown.err
    assert shown.out == ""


def test_hash_prints_the_digest_of_a_key(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = generate_key()
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{key}\n"))
    assert main(["key", "hash"]) == 0
    assert capsys.readouterr() == (f"{digest(key)}\n", "")


def test_hash_asks_for_a_key_without_showing_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = generate_key()
    monkeypatch.setattr("sys.stdin", Typed())
    monkeypatch.setattr(key_command, "getpass", lambda prompt: key)
    assert main(["key", "hash"]) == 0
    assert capsys.readouterr() == (f"{digest(key)}\n", "")


BAD = ["", "s3cret", "s3cret " * 10, "schlüssel" * 5, "s3cret\x00" * 10, "s3cret" * 99]


@pytest.mark.parametrize("key", BAD, ids=lambda key: repr(key[:9]))
def test_what_is_no_good_key_gets_no_digest(
    key: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(key))
    assert main(["key", "hash"]) == 1
    shown = capsys.readouterr()
    assert "s3cret" not in shown.err
    assert shown.out == ""


@pytest.mark.parametrize("host", ["  host: 0.0.0.0", ""], ids=["all", "Ray's default"])
def test_serve_refuses_at_once_to_let_others_in_without_a_key(
    host: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cli, "_make_ready", lambda application: pytest.fail("It goes on."))
    config = (ROOT / "serve_config.yaml").read_text("utf-8")
    file = tmp_path / "config.yaml"
    file.write_text(re.sub(r"(?m)^  host: 127\.0\.0\.1.*$", host, config), "utf-8")
    assert main(["serve", str(file)]) == 1
    assert "embedserve key new" in capsys.readouterr().err
