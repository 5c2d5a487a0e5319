"""`embedserve serve` from start to end: run the printed command, Ctrl-C, no process is left."""

import asyncio
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
import yaml

from serve_app.command.ports import free_port
from serve_app.command.process_tree import command_line, process_name
from tests.drain_load import CLIENTS, send_until_refused
from tests.on_ray.test_cache import embed, new_texts

ROOT = Path(__file__).parents[2]
EMBEDSERVE = (sys.executable, "-m", "serve_app.command.main")
KEY = "es-key"
#: The end of what `embedserve serve` prints when it is ready.
READY = r"curl [\s\S]*'\n"


def descendants(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """Returns all descendants of a process."""
    return psutil.Process(process.pid).children(recursive=True)


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
def running_command(*arguments: str, scratch: str) -> Iterator["subprocess.Popen[str]"]:
    """Starts `embedserve serve`, and kills it if the test didn't stop it."""
    process = subprocess.Popen(
        [*EMBEDSERVE, "serve", *arguments, "--port", str(free_port())],
        env={**os.environ, "RAY_TMPDIR": scratch, "RAY_ADDRESS": "local"},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def check_start(
    process: "subprocess.Popen[str]", config: str, scratch: str, *, standalone: bool = False
) -> tuple[str, list[psutil.Process]]:
    """Waits for the service and runs the command that it prints; returns URL and processes."""
    output = read_until(process, READY, timeout_s=180)
    for stage in ("model", "weights", "space", "ready"):
        assert stage in output
    started = descendants(process)
    on_ray = not standalone
    assert ("Ray" in output, "replicas" in output) == (on_ray, on_ray)
    has_proxy = on_ray and config != "configs/portable.yaml"
    assert ("haproxy" in map(process_name, started)) == has_proxy
    assert any("valkey-server" in process_name(p) for p in processes_mentioning(f"{scratch}/cache"))
    curl = output[output.index("curl ") :]
    reply = subprocess.run(
        ["bash", "-c", f"{curl.strip()} -s"], capture_output=True, check=True, timeout=60
    )
    assert len(json.loads(reply.stdout)["data"][0]["embedding"]) == 384
    return service_url(output), started


@contextmanager
def serve_command(
    config: str, scratch: str, *signals: signal.Signals, standalone: bool = False
) -> Iterator[str]:
    """Starts and checks the service, yields its URL, and stops it with one signal or several."""
    options = ["--standalone"] if standalone else []
    with running_command(with_cache_in(config, scratch), *options, scratch=scratch) as process:
        started: list[psutil.Process] = []
        try:
            url, started = check_start(process, config, scratch, standalone=standalone)
            yield url
        finally:
            for number in signals:
                process.send_signal(number)
                if number != signals[-1]:
                    time.sleep(1)  # the next one comes while it stops
            final_output, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert "stopped" in final_output
        assert [child for child in started if child.is_running()] == []
        assert processes_mentioning(scratch) == []


def service_url(output: str) -> str:
    """Returns the URL in the command that `embedserve serve` prints."""
    return output[output.index("curl ") :].split()[1].removesuffix("/v1/embeddings")


def test_the_cache_survives_a_restart_with_another_topology() -> None:
    texts = new_texts(1000)
    replies: list[tuple[bytes, str]] = []
    impatient = [signal.SIGTERM, signal.SIGINT, signal.SIGINT]
    with tempfile.TemporaryDirectory(prefix="es-", dir="/tmp") as scratch:
        for config, standalone, signals in (  # share cache keys
            ("configs/portable.yaml", False, impatient),
            ("configs/one-machine.yaml", False, [signal.SIGINT]),
            ("serve_config.yaml", True, [signal.SIGINT]),
        ):
            with serve_command(config, scratch, *signals, standalone=standalone) as url:
                replies += [embed(url, texts) for _ in range(2)]
    assert [cache for _, cache in replies] == [
        "hits=0; misses=1000",
        "hits=1000; misses=0; tier=l1",
        *["hits=1000; misses=0; tier=l2", "hits=1000; misses=0; tier=l1"] * 2,
    ]
    assert len({vectors for vectors, _ in replies}) == 1


def gcs_address(process: "subprocess.Popen[str]") -> str:
    """Returns the address of a service's Ray cluster."""
    for descendant in descendants(process):
        if match := re.search(r"--gcs-address=(\S+)", " ".join(command_line(descendant))):
            return match[1]
    raise AssertionError("The service has no Ray process.")


def deploy(file: Path, address: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*EMBEDSERVE, "deploy", str(file), "--address", address],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


@contextmanager
def steady_load(url: str) -> Iterator[list[httpx2.Response]]:
    """Yields the replies to requests that are sent one after another until the end of the block."""
    replies: list[httpx2.Response] = []
    ended = threading.Event()

    def send() -> None:
        with httpx2.Client(headers={"authorization": f"Bearer {KEY}"}, timeout=60) as client:
            while not ended.wait(0.02):
                body = {"input": new_texts(1)}
                replies.append(client.post(f"{url}/v1/embeddings", json=body))

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield replies
    finally:
        ended.set()
        thread.join()


def dimensions_by_space(replies: list[httpx2.Response]) -> dict[str, set[int]]:
    """Returns the lengths of vectors by the space that their replies name, in order of time."""
    dimensions: dict[str, set[int]] = {}
    for reply in replies:
        assert reply.status_code == 200, reply.text
        (entry,) = reply.json()["data"]
        space = dimensions.setdefault(reply.headers["x-embedding-space"], set())
        space.add(len(entry["embedding"]))
    return dimensions


def break_application(application: dict[str, Any]) -> tuple[str, ...]:
    """Changes an application so that it can't run; returns what the user of `deploy` reads."""
    if application["args"].get("topology") == "colocated":
        # Code with an environment of its own is found to be missing when Ray builds it.
        application["runtime_env"] = {"env_vars": {"RELEASE": "2"}}
        application["import_path"] = "serve_app.missing:build"
        return "No module named 'serve_app.missing'", "The configuration before it runs again."
    # Its models are loaded once on the cluster, before anything is sent.
    application["args"]["device"] = "cuda"
    del application["args"]["model"]  # the default model
    return ("can't be loaded: `device: cuda` needs a GPU: set `num_gpus`",)


def wait_until_refused(url: str) -> None:
    """Waits until nothing listens at a URL."""
    deadline = time.monotonic() + 30
    with suppress(httpx2.ConnectError):
        while time.monotonic() < deadline:
            httpx2.get(f"{url}/health")
        raise AssertionError("The port is still open.")


@pytest.mark.parametrize("config", ["serve_config.yaml", "configs/one-machine.yaml"])
def test_deploy_and_the_end_cut_off_no_request(config: str) -> None:
    with tempfile.TemporaryDirectory(prefix="es-", dir="/tmp") as scratch:
        file = Path(with_cache_in(config, scratch))
        content = yaml.safe_load(file.read_text("utf-8"))
        content["applications"][0]["args"]["model"] = {"name": "words", "source": "hashing:64"}
        file.write_text(yaml.safe_dump(content), "utf-8")
        with running_command(str(file), "--drain-timeout", "60", scratch=scratch) as process:
            url = service_url(read_until(process, READY, timeout_s=180))
            address = gcs_address(process)

            args = content["applications"][0]["args"]
            ingress = content["applications"][0]["deployments"][0]
            digest = hashlib.sha256(KEY.encode()).hexdigest()
            ingress["user_config"]["access"] = {"keys": [{"name": "a", "sha256": digest}]}
            file.write_text(yaml.safe_dump(content), "utf-8")
            completed = deploy(file, address)
            assert completed.returncode == 0, completed.stderr
            assert "deployed  embedserve" in completed.stdout
            assert (
                httpx2.post(f"{url}/v1/embeddings", json={"input": "x"}, timeout=30).status_code
                == 401
            )

            reasons = break_application(content["applications"][0])
            file.write_text(yaml.safe_dump(content), "utf-8")
            with steady_load(url) as replies:
                completed = deploy(file, address)
            assert completed.returncode == 1
            assert [r for r in reasons if r not in completed.stderr] == []
            assert "Traceback" not in completed.stderr
            assert [*dimensions_by_space(replies).values()] == [{64}]
            assert (
                httpx2.post(f"{url}/v1/embeddings", json={"input": "x"}, timeout=30).status_code
                == 401
            )

            content["applications"][0] |= {"import_path": "serve_app.app:build", "runtime_env": {}}
            args.pop("device", None)
            args.pop("model", None)  # the default model
            del ingress["user_config"]["access"]
            file.write_text(yaml.safe_dump(content), "utf-8")
            with steady_load(url) as replies:
                assert deploy(file, address).returncode == 0
            # A previous Ingress whose Embedder is gone refuses requests.
            refused = [r for r in replies if r.status_code == 503]
            assert not refused or config == "serve_config.yaml"
            assert all(r.headers["retry-after"] == "1" for r in refused)
            dimensions = dimensions_by_space([r for r in replies if r not in refused])
            assert [*dimensions.values()] == [{64}, {384}]

            clients = ThreadPoolExecutor(1)
            counts = clients.submit(asyncio.run, send_until_refused(url))
            texts = new_texts(6 * 60)
            statuses: list[int] = []

            all_connected = threading.Barrier(7)

            def send(first: int) -> None:
                body = {"input": [f"{text} " + "word " * 200 for text in texts[first::6]]}
                with httpx2.Client(base_url=url, timeout=120) as client:
                    client.get("/health")
                    all_connected.wait(60)
                    statuses.append(client.post("/v1/embeddings", json=body).status_code)

            threads = [threading.Thread(target=send, args=(i,)) for i in range(6)]
            for thread in threads:
                thread.start()
            all_connected.wait(60)
            time.sleep(0.5)  # until all are in flight
            assert statuses == []
            process.send_signal(signal.SIGTERM)
            read_until(process, "draining", timeout_s=30)
            wait_until_refused(url)
            for thread in threads:
                thread.join()
            assert statuses == [200] * 6
            assert counts.result().failures == []
            assert counts.result().succeeded > 0
            assert counts.result().refused == CLIENTS
            clients.shutdown()
            process.communicate(timeout=60)
            assert process.returncode == 0
            assert processes_mentioning(scratch) == []


@contextmanager
def scratch_of_killed_processes() -> Iterator[str]:
    """Yields a directory with a short path, in which Ray's agents write for a while at the end."""
    scratch = tempfile.mkdtemp(prefix="es-", dir="/tmp")
    try:
        yield scratch
    finally:
        deadline = time.monotonic() + 30
        while Path(scratch).exists():
            shutil.rmtree(scratch, ignore_errors=time.monotonic() < deadline)
            time.sleep(0.1)


def test_a_service_whose_ray_node_dies_starts_again() -> None:
    with scratch_of_killed_processes() as scratch:
        config = with_cache_in("serve_config.yaml", scratch)
        with running_command(config, scratch=scratch) as process:
            url, before = check_start(process, "serve_config.yaml", scratch)
            (raylet,) = (p for p in before if process_name(p) == "raylet")
            raylet.kill()
            output = read_until(process, READY, timeout_s=180)
            assert "failed  Ray's node died." in output
            assert "restart  1 of 5" in output
            assert embed(url, new_texts(3))[1] == "hits=0; misses=3"
            assert not any(map(psutil.Process.is_running, before))

            # A killed command takes its processes with it.
            process.kill()
            deadline = time.monotonic() + 60
            while processes_mentioning(scratch):
                assert time.monotonic() < deadline
                time.sleep(0.2)
