"""The command as a person uses it: start, paste what it prints, Ctrl-C, nothing left."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import yaml

from serve_app.command.serve import free_port
from tests.on_ray.test_cache import ask, new_texts

ROOT = Path(__file__).parents[2]


def family(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """What a process started, and what that started, and so on."""
    return psutil.Process(process.pid).children(recursive=True)


def is_haproxy(process: psutil.Process) -> bool:
    """Whether it is one; a process that has ended meanwhile is none."""
    try:
        return process.name() == "haproxy"
    except psutil.NoSuchProcess:
        return False


def started_in(folder: str) -> list[psutil.Process]:
    """The processes whose command line tells of a folder."""
    every = psutil.process_iter(["cmdline"])
    return [p for p in every if folder in " ".join(p.info["cmdline"] or [])]


def with_cache_in(config: str, folder: str) -> str:
    """The same configuration, whose cache leaves nothing in the user's folder."""
    content = yaml.safe_load((ROOT / config).read_text("utf-8"))
    content["applications"][0].setdefault("args", {})["cache"] = {"data_dir": f"{folder}/cache"}
    file = Path(folder) / "config.yaml"
    file.write_text(yaml.safe_dump(content), "utf-8")
    return str(file)


def read_until(process: "subprocess.Popen[str]", pattern: str, timeout_s: float) -> str:
    assert process.stdout
    watchdog = threading.Timer(timeout_s, process.kill)
    watchdog.start()
    text = ""
    while not re.search(pattern, text):
        line = process.stdout.readline()
        assert line, f"{pattern!r} did not come:\n{text}"
        text += line
    watchdog.cancel()
    return text


def test_a_service_that_cannot_start_says_why_and_ends(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    text = (ROOT / "configs" / "portable.yaml").read_text("utf-8")
    at = "import_path: serve_app.app:build\n"
    config.write_text(text.replace(at, f"{at}    args: {{device: cuda}}\n"), "utf-8")
    with tempfile.TemporaryDirectory(prefix="es-", dir="/tmp") as scratch:
        ended = subprocess.run(
            [
                sys.executable,
                "-m",
                "serve_app.command.main",
                "serve",
                config,
                "--port",
                str(free_port()),
            ],
            env={**os.environ, "RAY_TMPDIR": scratch, "RAY_ADDRESS": "local"},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert ended.returncode == 1
        assert "`device: cuda` needs a GPU: set `num_gpus`" in ended.stderr
        assert "Traceback" not in ended.stderr
        assert started_in(scratch) == []


@contextmanager
def by_command(config: str, scratch: str, *signals: signal.Signals) -> Iterator[str]:
    """A service that a person starts, tries as it says, and ends; its URL."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "serve_app.command.main", "serve"),
            *(with_cache_in(config, scratch), "--port", str(free_port())),
        ],
        env={**os.environ, "RAY_TMPDIR": scratch, "RAY_ADDRESS": "local"},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        shown = read_until(process, r"curl [\s\S]*'\n", timeout_s=180)
        for stage in ("model", "weights", "space", "Ray", "replicas", "ready"):
            assert stage in shown
        started = family(process)
        assert any(map(is_haproxy, started)) == (config != "configs/portable.yaml")
        assert any("valkey-server" in p.name() for p in started_in(f"{scratch}/cache"))
        curl = shown[shown.index("curl ") :]
        reply = subprocess.run(
            ["bash", "-c", f"{curl.strip()} -s"], capture_output=True, check=True, timeout=60
        )
        assert len(json.loads(reply.stdout)["data"][0]["embedding"]) == 384
        yield curl.split()[1].removesuffix("/v1/embeddings")
    finally:
        for number in signals:
            process.send_signal(number)
            time.sleep(1)
        last_words, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "stopped" in last_words
    assert [child for child in started if child.is_running()] == []
    assert started_in(scratch) == []


def test_start_use_and_end_in_a_hurry() -> None:
    signals = [signal.SIGTERM, *[signal.SIGINT] * 3]
    with (
        tempfile.TemporaryDirectory(prefix="es-", dir="/tmp") as scratch,
        by_command("configs/portable.yaml", scratch, *signals),
    ):
        pass


def test_start_use_and_end_and_what_is_known_is_not_computed_again() -> None:
    texts = new_texts(1000)
    given: list[tuple[bytes, str]] = []
    with tempfile.TemporaryDirectory(prefix="es-", dir="/tmp") as scratch:
        for life in ("serve_config.yaml", "configs/one-machine.yaml"):  # which share their keys
            with by_command(life, scratch, signal.SIGINT) as url:
                given += [ask(url, texts) for _ in range(2)]
    assert [cache for _, cache in given] == [
        "hits=0; misses=1000",
        "hits=1000; misses=0; tier=l1",
        "hits=1000; misses=0; tier=l2",
        "hits=1000; misses=0; tier=l1",
    ]
    assert len({vectors for vectors, _ in given}) == 1
