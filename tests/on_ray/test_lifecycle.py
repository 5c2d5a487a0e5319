"""`embedserve serve` from start to end: run the printed command, Ctrl-C, no process is left."""

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

from serve_app.command.ports import free_port
from tests.on_ray.test_cache import embed, new_texts

ROOT = Path(__file__).parents[2]


def descendants(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """Returns all descendants of a process."""
    return psutil.Process(process.pid).children(recursive=True)


def is_haproxy(process: psutil.Process) -> bool:
    """Returns whether a process is HAProxy; False if it has ended."""
    try:
        return process.name() == "haproxy"
    except psutil.NoSuchProcess:
        return False


def processes_mentioning(path: str) -> list[psutil.Process]:
    """Returns the processes whose command line contains a path."""
    processes = psutil.process_iter(["cmdline"])
    return [p for p in processes if path in " ".join(p.info["cmdline"] or [])]


def with_cache_in(config: str, directory: str) -> str:
    """Writes the configuration with its cache in `directory`; returns the file's path."""
    content = yaml.safe_load((ROOT / config).read_text("utf-8"))
    content["applications"][0].setdefault("args", {})["cache"] = {"data_dir": f"{directory}/cache"}
    file = Path(directory) / "config.yaml"
    file.write_text(yaml.safe_dump(content), "utf-8")
    return str(file)


def read_until(process: "subprocess.Popen[str]", pattern: str, timeout_s: float) -> str:
    assert process.stdout
    watchdog = threading.Timer(timeout_s, process.kill)
    watchdog.start()
    text = ""
    while not re.search(pattern, text):
        line = process.stdout.readline()
        assert line, f"The output ended before {pattern!r}:\n{text}"
        text += line
    watchdog.cancel()
    return text


def test_a_service_that_cannot_start_exits_with_the_reason(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    text = (ROOT / "configs" / "portable.yaml").read_text("utf-8")
    import_path = "import_path: serve_app.app:build\n"
    config.write_text(
        text.replace(import_path, f"{import_path}    args: {{device: cuda}}\n"), "utf-8"
    )
    with tempfile.TemporaryDirectory(prefix="es-", dir="/tmp") as scratch:
        completed = subprocess.run(
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
        assert completed.returncode == 1
        assert "`device: cuda` needs a GPU: set `num_gpus`" in completed.stderr
        assert "Traceback" not in completed.stderr
        assert processes_mentioning(scratch) == []


@contextmanager
def serve_command(config: str, scratch: str, *signals: signal.Signals) -> Iterator[str]:
    """Starts the service, runs the curl command that it prints, yields its URL and stops it."""
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
        output = read_until(process, r"curl [\s\S]*'\n", timeout_s=180)
        for stage in ("model", "weights", "space", "Ray", "replicas", "ready"):
            assert stage in output
        started = descendants(process)
        assert any(map(is_haproxy, started)) == (config != "configs/portable.yaml")
        assert any("valkey-server" in p.name() for p in processes_mentioning(f"{scratch}/cache"))
        curl = output[output.index("curl ") :]
        reply = subprocess.run(
            ["bash", "-c", f"{curl.strip()} -s"], capture_output=True, check=True, timeout=60
        )
        assert len(json.loads(reply.stdout)["data"][0]["embedding"]) == 384
        yield curl.split()[1].removesuffix("/v1/embeddings")
    finally:
        for number in signals:
            process.send_signal(number)
            time.sleep(1)
        final_output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "stopped" in final_output
    assert [child for child in started if child.is_running()] == []
    assert processes_mentioning(scratch) == []


def test_repeated_signals_stop_the_service_cleanly() -> None:
    signals = [signal.SIGTERM, *[signal.SIGINT] * 3]
    with (
        tempfile.TemporaryDirectory(prefix="es-", dir="/tmp") as scratch,
        serve_command("configs/portable.yaml", scratch, *signals),
    ):
        pass


def test_the_cache_survives_a_restart_with_another_topology() -> None:
    texts = new_texts(1000)
    replies: list[tuple[bytes, str]] = []
    with tempfile.TemporaryDirectory(prefix="es-", dir="/tmp") as scratch:
        for config in ("serve_config.yaml", "configs/one-machine.yaml"):  # share cache keys
            with serve_command(config, scratch, signal.SIGINT) as url:
                replies += [embed(url, texts) for _ in range(2)]
    assert [cache for _, cache in replies] == [
        "hits=0; misses=1000",
        "hits=1000; misses=0; tier=l1",
        "hits=1000; misses=0; tier=l2",
        "hits=1000; misses=0; tier=l1",
    ]
    assert len({vectors for vectors, _ in replies}) == 1
