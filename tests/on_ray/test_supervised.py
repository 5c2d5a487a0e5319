"""A supervised service is killed during calls and restarts."""

import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

from embedserve_client import Client, EmbedError, Supervisor
from serve_app.command.ports import free_port, with_free_ports
from serve_app.config import ModelConfig
from serve_app.engines.hashing_engine import HashingEngine
from serve_app.models import resolve

ROOT = Path(__file__).parents[2]
SOURCE = "hashing:64"
CALLS, THREADS = 1000, 8


def commands_mentioning(path: str) -> list[str]:
    """Returns the command lines of all processes that contain a path."""
    commands = (" ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"]))
    return [command for command in commands if path in command]


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Supervisor]:
    with tempfile.TemporaryDirectory(prefix="es-", dir="/tmp") as scratch:
        config = yaml.safe_load((ROOT / "serve_config.yaml").read_text("utf-8"))
        config = with_free_ports(config, free_port(), Path(scratch))
        model = {"name": "hashing", "source": SOURCE}
        config["applications"][0]["args"] = {"model": model, "cache": {"url": "none"}}
        file = Path(scratch) / "config.yaml"
        file.write_text(yaml.safe_dump(config), "utf-8")
        monkeypatch.setenv("RAY_TMPDIR", scratch)
        monkeypatch.setenv("RAY_ADDRESS", "local")
        supervisor = Supervisor(
            config["http_options"]["port"],
            config=file,
            use_ray=True,
            ready_timeout_s=180,
            shared_dir=Path(scratch) / "shared-service",
            on_progress=print,
        )
        yield supervisor
        supervisor.stop()
        deadline = time.monotonic() + 30  # the supervisor process ends after the service
        while remaining := commands_mentioning(scratch):
            assert time.monotonic() < deadline, remaining
            time.sleep(0.1)


def process_tree(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def test_a_client_outlives_a_kill_during_a_thousand_calls(supervisor: Supervisor) -> None:
    supervisor.start()
    engine = HashingEngine(resolve(ModelConfig(name="hashing", source=SOURCE)))
    succeeded: list[int] = []
    failed: list[EmbedError] = []

    with Client(supervisor.url, timeout_s=120) as client:

        def embed(first: int) -> None:
            for i in range(first, CALLS, THREADS):
                text = f"call {i}"
                try:
                    vector = client.embed(text)
                except EmbedError as error:
                    failed.append(error)
                    continue
                assert np.array_equal(
                    vector, engine.run("embed", engine.tokenizer.encode([text]))[0]
                )
                succeeded.append(i)

        threads = [threading.Thread(target=embed, args=(i,)) for i in range(THREADS)]
        for thread in threads:
            thread.start()
        while len(succeeded) < CALLS // 3:
            time.sleep(0.01)
        before = supervisor.status().pid
        assert before is not None
        assert "--standalone" not in psutil.Process(before).cmdline()
        for process in process_tree(before):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for thread in threads:
            thread.join(180)
            assert not thread.is_alive()
        # The supervisor has restarted the service for the same client.
        deadline = time.monotonic() + 120
        while not client.is_healthy():
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert np.array_equal(
            client.embed("call 0"), engine.run("embed", engine.tokenizer.encode(["call 0"]))[0]
        )
    assert len(succeeded) + len(failed) == CALLS
    assert supervisor.status().restarts >= 1
    assert supervisor.status().pid != before
