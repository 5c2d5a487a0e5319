"""The command, as a person or a script runs it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedserve_client import __version__
from embedserve_client.command import main as command
from embedserve_client.command.main import main
from tests.embedserve_client.scripted import SPACE, Handler, Scripted, refuse, vector, vectors

ROOT = Path(__file__).parents[2]
ONE_LINE = str(ROOT / "tests" / "embedserve_client" / "one_line.txt")
TEXTS = [f"text {i}" for i in range(600)]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    file = tmp_path / "texts.txt"
    file.write_text("".join(f"{text}\n" for text in TEXTS))
    return file


def expected() -> Any:
    return np.array([vector(text) for text in TEXTS], dtype=np.float32)


def start(*words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "embedserve_client.command.main", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )


def test_a_file_is_embedded_and_what_was_done_is_told(
    server: Scripted, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["embed", str(texts), "--url", server.url, "--input-type", "query"]) == 0
    assert np.array_equal(np.load(texts.with_suffix(".npy")), expected())
    told = " ".join(capsys.readouterr().err.split())
    assert f"600 vectors in {texts.with_suffix('.npy')}, of the space {SPACE}" in told
    assert {body["input_type"] for body in server.bodies} == {"query"}
    assert {headers["x-priority"] for headers in server.headers} == {"bulk"}


def test_as_json_for_programs(
    server: Scripted, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(texts.with_name("out.jsonl"))
    assert main(["embed", str(texts), "-o", out, "--url", server.url, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["output"], summary["rows"], summary["space"]) == (out, 600, SPACE)


def test_standard_input_to_standard_output(server: Scripted) -> None:
    process = start("embed", "-", "--url", server.url, "--batch-size", "7", "--quiet")
    out, err = process.communicate("".join(f"{text}\n" for text in TEXTS), timeout=60)
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["text"] for row in rows] == TEXTS
    assert np.array_equal(np.float32([row["embedding"] for row in rows]), expected())  # type: ignore[arg-type]
    assert (process.returncode, err) == (0, "")


def test_a_reader_that_leaves_is_no_crash(server: Scripted) -> None:
    process = start("embed", "-", "--url", server.url, "--batch-size", "1")
    assert process.stdin
    assert process.stdout
    process.stdin.write("".join(f"{text}\n" for text in TEXTS))
    process.stdin.close()
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(60) == 1
    assert process.stderr
    with process.stderr:
        assert "Traceback" not in process.stderr.read()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=lambda n: n.name)
def test_killed_half_way_and_gone_on_with(
    server: Scripted, texts: Path, number: signal.Signals
) -> None:
    """Whatever ends it, the same command again gives each text its vector, once."""

    def wait(handler: Handler) -> None:
        time.sleep(0.1)
        vectors()(handler)

    server.script = [wait] * 60
    words = ("embed", str(texts), "--url", server.url, "--batch-size", "10", "--concurrency", "2")
    process = start(*words)
    journal = texts.with_name("texts.npy.journal")
    end = time.monotonic() + 60
    while not journal.exists() and time.monotonic() < end:
        time.sleep(0.01)
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=60)
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert "the same command goes on there" in " ".join(err.split())
    done = json.loads(journal.read_text())["progress"]["records"]
    assert 0 < done < 600
    server.script, server.bodies = [], []
    process = start(*words)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert f"went on behind record {done}" in " ".join(err.split())
    assert np.array_equal(np.load(texts.with_suffix(".npy")), expected())
    assert sum(len(body["input"]) for body in server.bodies) == 600 - done


def test_a_service_that_is_away_for_a_while_is_waited_for(server: Scripted, texts: Path) -> None:
    server.script = [refuse(503, retry_after="0")] * 8
    assert main(["embed", str(texts), "--url", server.url, "--quiet"]) == 0
    assert np.array_equal(np.load(texts.with_suffix(".npy")), expected())


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (["health", "--url", "http://127.0.0.1:9"], 3, "Nobody answers at 127.0.0.1:9"),
        (["embed", "/no/file"], 1, "There is no file /no/file"),
        (["embed", "/no/file", "--url", "x", "--local"], 2, "not allowed with"),
        (["embed", __file__, "-o", "x.py"], 1, "must end in .npy"),
        (["embed", __file__, "--batch-size", "0"], 2, "0 is not 1 or more"),
        (["embed", ONE_LINE, "--local", "/no/model", "-o", "-"], 1, "There is no model"),
        (["health", "--url", "localhost"], 1, "isn't an address"),
        ([], 2, "required: COMMAND"),
    ],
)
def test_what_is_wrong_is_told_with_a_status(
    capsys: pytest.CaptureFixture[str], words: list[str], status: int, told: str
) -> None:
    try:
        found = main(words)
    except SystemExit as error:  # argparse
        found = int(str(error.code))
    assert found == status
    assert told in capsys.readouterr().err


def test_errors_are_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--url", "http://127.0.0.1:9", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "NETWORK_ERROR"


def test_health_is_the_exit_status(server: Scripted, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["health", "--url", server.url]) == 0
    server.healthy = False
    assert main(["health", "--url", server.url, "--json"]) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"status": "unavailable"}


def test_without_the_service_its_commands_say_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "entry_points", lambda group: [])
    assert main(["serve"]) == 1
    assert "`serve` is part of the service: pip install embedserve" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert "embed " in shown
    assert "prepare" not in shown


def test_the_two_distributions_have_one_version() -> None:
    from serve_app import __version__ as service

    assert __version__ == service


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("embed", "stdio", "health", "info", "models", "serve"):
        with pytest.raises(SystemExit) as ended:
            main([name, "--help"])
        assert ended.value.code == 0
    assert "examples:" in capsys.readouterr().out
