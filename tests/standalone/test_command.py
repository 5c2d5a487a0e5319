"""`embedserve serve --standalone` as a process, from start to end."""

import asyncio
import hashlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx2
import psutil
import pytest
import yaml

from embedserve_client.command.main import main
from serve_app.command.ports import free_port
from tests.drain_load import CLIENTS, Counts, send_until_refused

COMMAND = (sys.executable, "-m", "serve_app.command.main", "serve", "--standalone")
#: The end of what the command prints when it is ready.
READY = r"curl [\s\S]*'\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_config(tmp_path)


def write_config(folder: Path, host: str = "127.0.0.1", **settings: object) -> Path:
    """Writes the configuration of a hashing engine with a cache in the folder."""
    args = {
        "model": {"name": "words", "source": "hashing:64"},
        "cache": {"data_dir": str(folder / "cache")},
    }
    config = {
        "http_options": {"host": host, "port": free_port()},
        "applications": [
            {
                "name": "embedserve",
                "args": args,
                "deployments": [{"name": "EmbedServer", "user_config": settings}],
            }
        ],
    }
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config), "utf-8")
    return file


@contextmanager
def running(*arguments: object) -> Iterator["tuple[subprocess.Popen[str], str]"]:
    """Starts the command; yields the process, and what it has printed when it is ready."""
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    watchdog = threading.Timer(120, process.kill)
    watchdog.start()
    try:
        assert process.stdout is not None
        output = ""
        while not re.search(READY, output):
            line = process.stdout.readline()
            assert line, f"The command ended before it was ready:\n{output}"
            output += line
        yield process, output
    finally:
        watchdog.cancel()
        process.kill()
        process.communicate()


def service_url(output: str) -> str:
    """Returns the URL in the printed command."""
    return output[output.index("curl ") :].split()[1].removesuffix("/v1/embeddings")


def embed(url: str, *texts: str, **headers: str) -> httpx2.Response:
    return httpx2.post(f"{url}/v1/embeddings", json={"input": texts}, headers=headers, timeout=30)


def processes_mentioning(path: Path) -> list[psutil.Process]:
    """Returns the processes whose command line contains a path."""
    processes = psutil.process_iter(["cmdline"])
    return [p for p in processes if str(path) in " ".join(p.info["cmdline"] or [])]


def wait_until_none_mentions(path: Path) -> None:
    deadline = time.monotonic() + 60
    while remaining := processes_mentioning(path):
        assert time.monotonic() < deadline, remaining
        time.sleep(0.1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, None], ids=str)
def test_from_start_to_end(file: Path, tmp_path: Path, number: signal.Signals | None) -> None:
    with running(file, "--until-eof") as (process, output):
        for stage in ("model", "space", "engine", "ready"):
            assert re.search(rf"^ *{stage}  ", output, re.MULTILINE)
        curl = f"{output[output.index('curl ') :].strip()} -s"
        reply = subprocess.run(["bash", "-c", curl], capture_output=True, check=True, timeout=30)
        assert len(json.loads(reply.stdout)["data"][0]["embedding"]) == 64
        assert processes_mentioning(tmp_path / "cache")
        if number is None:
            assert process.stdin is not None
            process.stdin.close()
            process.stdin = None
        else:
            process.send_signal(number)
        final_output, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert "stopped" in final_output
        assert "Traceback" not in final_output
    assert processes_mentioning(tmp_path) == []


def test_clients_are_answered_until_the_port_closes(file: Path) -> None:
    with running(file) as (process, output), ThreadPoolExecutor(1) as pool:
        counts = Counts()
        sending = send_until_refused(service_url(output), dimensions=64, counts=counts)
        load = pool.submit(asyncio.run, sending)
        deadline = time.monotonic() + 60
        while counts.succeeded <= 2 * CLIENTS and not load.done():
            assert time.monotonic() < deadline, counts
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        load.result()
    assert counts.failures == []
    assert counts.refused == CLIENTS


def test_the_cache_survives_a_restart(file: Path) -> None:
    texts = [f"text {i}" for i in range(500)]
    replies = []
    for _ in range(2):
        with running(file) as (process, output):
            replies += [embed(service_url(output), *texts) for _ in range(2)]
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=30)
    assert [reply.headers["x-cache"] for reply in replies] == [
        "hits=0; misses=500",
        "hits=500; misses=0; tier=l1",
        "hits=500; misses=0; tier=l2",
        "hits=500; misses=0; tier=l1",
    ]
    assert len({str(reply.json()["data"]) for reply in replies}) == 1


def test_a_killed_service_leaves_no_process_and_starts_again(file: Path, tmp_path: Path) -> None:
    with running(file) as (process, output):
        embed(service_url(output), "a")
        process.kill()
    wait_until_none_mentions(tmp_path)
    with running(file) as (_, output):
        assert embed(service_url(output), "a").status_code == 200


def test_one_process_has_nowhere_to_spill_over_to(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = yaml.safe_load(file.read_text("utf-8"))
    words = {"name": "words", "source": "hashing:64"}
    config["applications"][0] |= {
        "args": {
            "models": [
                words | {"fallback": ["others"], "spill_over_after_s": 1},
                words | {"name": "others", "deployment": "Others"},
            ]
        },
        "deployments": [{"name": "Ingress"}],
    }
    file.write_text(yaml.safe_dump(config), "utf-8")
    assert main(["serve", "--standalone", str(file)]) == 1
    error = capsys.readouterr().err
    assert "With `--standalone` one process runs all models, so words has nowhere" in error
    assert len(error.splitlines()) == 1


def test_other_machines_need_a_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--standalone", str(write_config(tmp_path, "0.0.0.0"))]) == 1
    error = capsys.readouterr().err
    assert "API key" in error
    assert len(error.splitlines()) == 1

    key = {"name": "a", "sha256": hashlib.sha256(b"es-key").hexdigest()}
    file = write_config(tmp_path, "0.0.0.0", access={"keys": [key]})
    with running(file) as (_, output):
        url = service_url(output)
        assert url.startswith("http://127.0.0.1:")  # where this machine reaches it
        statuses = [
            embed(url, "a", **h).status_code for h in ({}, {"authorization": "Bearer es-key"})
        ]
        assert statuses == [401, 200]


def test_invalid_keys_are_an_error(tmp_path: Path) -> None:
    file = write_config(tmp_path, access={"keys_file": str(tmp_path / "missing.yaml")})
    completed = subprocess.run(
        [*COMMAND, file], capture_output=True, text=True, timeout=60, check=False
    )
    assert completed.returncode == 1
    assert "`access.keys_file` can't be read: No such file" in completed.stderr
    assert "Traceback" not in completed.stderr
    wait_until_none_mentions(tmp_path / "cache")


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
def test_the_printed_url_of_an_ipv6_address_works(tmp_path: Path) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("This machine has no IPv6 address.")
    with running(write_config(tmp_path, "::1")) as (_, output):
        assert embed(service_url(output), "a").status_code == 200


def test_a_port_in_use_is_a_one_line_error(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert main(["serve", "--standalone", str(file), "--port", str(port)]) == 1
    error = capsys.readouterr().err
    assert f"Can't listen on port {port}" in error
    assert f"embedserve serve --standalone --port {port + 1}" in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("options", [[], ["--log-format", "json", "--log-level", "error"]], ids=str)
def test_the_request_log_has_one_line_for_each_request(tmp_path: Path, options: list[str]) -> None:
    file = write_config(tmp_path, request_log=True)
    with running(file, *options) as (process, output):
        embed(service_url(output), "secret words", **{"x-request-id": "abc"})
        httpx2.get(f"{service_url(output)}/health")
        process.send_signal(signal.SIGTERM)
        final_output, _ = process.communicate(timeout=30)
    (line,) = [line for line in final_output.splitlines() if "POST" in line]
    assert "secret" not in final_output
    if options:
        fields = json.loads(line)
        assert (fields["levelname"], fields["texts"], fields["request_id"]) == ("INFO", 1, "abc")
    else:
        assert line.startswith("INFO ")
        assert "POST /v1/embeddings 200" in line
        assert "texts=1" in line
    assert "/health" not in final_output


def test_neither_ray_nor_torch_is_imported() -> None:
    code = """
import sys
import serve_app.command.main, serve_app.command.standalone
assert not {"ray", "torch"} & {*sys.modules}
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
