import io
import re
from decimal import Decimal
from pathlib import Path

import pytest
import yaml

from embedserve_client.command.main import main
from serve_app.access.keys import KeyRing, digest, generate_key
from serve_app.command import key as key_command
from serve_app.command import prepare
from serve_app.config import AccessSettings

ROOT = Path(__file__).parents[2]


class Terminal(io.StringIO):
    """Standard input of a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_new_key_matches_its_configuration_entry(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--models", "small", "large", "--lane", "bulk", "--requests-per-minute", "60"]
    limits = ["--tokens-per-minute", "1000", "--concurrent-tokens", "500"]
    budget = ["--max-usd-per-month", "12.50"]
    assert main(["key", "new", "alice", *options, *limits, *budget]) == 0
    output = capsys.readouterr()
    (key,) = re.findall(r"es-[\w-]{43}", output.err)
    assert key not in output.out
    file = tmp_path / "keys.yaml"
    file.write_text(f"keys:\n{output.out}", "utf-8")
    ring = KeyRing()
    ring.apply(AccessSettings(keys_file=str(file)))
    entry = ring.find(key)
    assert entry is not None
    assert entry.model_dump(exclude={"sha256"}) == {
        "name": "alice",
        "models": ("small", "large"),
        "lane": "bulk",
        "requests_per_minute": 60,
        "tokens_per_minute": 1000,
        "concurrent_tokens": 500,
        "max_usd_per_month": Decimal("12.50"),
    }


def test_an_entry_has_no_unset_fields(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", "new", "2024"]) == 0
    (entry,) = yaml.safe_load(capsys.readouterr().out)
    assert entry.keys() == {"name", "sha256"}
    assert entry["name"] == "2024"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["al ice"], "name: String should match pattern"),
        (["alice", "--requests-per-minute", "0"], "requests_per_minute: Input should be greater"),
    ],
)
def test_an_invalid_entry_is_an_error(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["key", "new", *arguments]) == 1
    output = capsys.readouterr()
    assert message in output.err
    assert output.out == ""


def test_hash_prints_the_digest_of_a_key(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = generate_key()
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{key}\n"))
    assert main(["key", "hash"]) == 0
    assert capsys.readouterr() == (f"{digest(key)}\n", "")


def test_hash_prompts_for_the_key_without_echo(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = generate_key()
    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr(key_command, "getpass", lambda prompt: key)
    assert main(["key", "hash"]) == 0
    assert capsys.readouterr() == (f"{digest(key)}\n", "")


INVALID = ["", "s3cret", "s3cret " * 10, "schlüssel" * 5, "s3cret\x00" * 10, "s3cret" * 99]


@pytest.mark.parametrize("key", INVALID, ids=lambda key: repr(key[:9]))
def test_an_invalid_key_gets_no_digest(
    key: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(key))
    assert main(["key", "hash"]) == 1
    output = capsys.readouterr()
    assert "s3cret" not in output.err
    assert output.out == ""


@pytest.mark.parametrize("host", ["  host: 0.0.0.0", ""], ids=["all", "Ray's default"])
def test_serve_beyond_loopback_without_a_key_fails_before_it_prepares_the_model(
    host: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prepare, "iter_engines", lambda config: pytest.fail("It continues."))
    config = (ROOT / "serve_config.yaml").read_text("utf-8")
    file = tmp_path / "config.yaml"
    file.write_text(re.sub(r"(?m)^  host: 127\.0\.0\.1.*$", host, config), "utf-8")
    assert main(["serve", str(file)]) == 1
    assert "embedserve key new" in capsys.readouterr().err
