"""`embedserve run` as a process: workers, restarts, signals, and the end of everything."""

import ast
import http.server
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import yaml

from embedserve_client.command.main import main
from serve_app.command.ports import free_port

COMMAND = (sys.executable, "-m", "serve_app.command.main", "run")
ROOT = Path(__file__).parents[2]
#: A worker that answers the request in flight before it stops.
SERVER = """
import os, signal, sys, time
def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())  # one write, or lines of workers mix
def stop(number, frame):
    say("worker got", signal.Signals(number).name)
    time.sleep(0.5)
    say("worker has answered")
    sys.exit(0)
for name in ("SIGTERM", "SIGINT", "SIGHUP"):
    signal.signal(getattr(signal, name), stop)
say("worker is up")
while True:
    time.sleep(1)
"""


@pytest.fixture(scope="module")
def service_url() -> Iterator[str]:
    """The URL of a service that is healthy."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'{"status": "ok"}'
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,)).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def free_ports(count: int) -> int:
    """Returns the first of several consecutive ports on which no process listens."""
    while True:
        first = free_port()
        try:
            for port in range(first, first + count):
                socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return first


@contextmanager
def running(*arguments: object) -> Iterator["subprocess.Popen[str]"]:
    """Starts the command, and kills it if it outlives the test."""
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    try:
        yield process
    finally:
        watchdog.cancel()
        process.kill()
        process.communicate(timeout=30)


def output_until(process: "subprocess.Popen[str]", text: str, count: int = 1) -> str:
    assert process.stdout is not None
    output = ""
    while output.count(text) < count:
        line = process.stdout.readline()
        assert line, f"The output ended before {text!r}:\n{output}"
        output += line
    return output


def rest(process: "subprocess.Popen[str]") -> tuple[str, int]:
    """Returns the rest of the output, and the exit status."""
    output, _ = process.communicate(timeout=30)
    return output, process.returncode


def completed(*arguments: object) -> tuple[str, int]:
    with running(*arguments) as process:
        return rest(process)


def worker_command(code: str, marker: object = "") -> tuple[str, ...]:
    return ("--", sys.executable, "-c", code, str(marker))


def wait_until_gone(marker: object) -> None:
    """Waits until no process has `marker` in its command line."""
    deadline = time.monotonic() + 30
    while remaining := [
        process
        for process in psutil.process_iter(["cmdline"])
        if str(marker) in " ".join(process.info["cmdline"] or [])
    ]:
        assert time.monotonic() < deadline, remaining
        time.sleep(0.1)


def test_each_worker_gets_a_port_and_the_url_of_the_service(
    service_url: str, tmp_path: Path
) -> None:
    names = ("PORT", "EMBEDSERVE_URL", "EMBEDDING_SERVER_HOST", "EMBEDDING_SERVER_PORT")
    code = f"""
import json, os, sys
with open(f"{{sys.argv[1]}}/{{os.environ['PORT']}}", "w") as file:
    json.dump({{name: os.environ[name] for name in {names}}}, file)
"""
    port = free_ports(3)
    output, status = completed(
        *("--url", service_url, "--workers", 3, "--port", port, *worker_command(code, tmp_path))
    )
    environments = [json.loads(file.read_text("utf-8")) for file in tmp_path.iterdir()]
    assert sorted(int(env["PORT"]) for env in environments) == [port, port + 1, port + 2]
    for env in environments:
        host, service_port = env["EMBEDDING_SERVER_HOST"], env["EMBEDDING_SERVER_PORT"]
        assert env["EMBEDSERVE_URL"] == f"http://{host}:{service_port}" == service_url
    for i in range(3):
        assert f"started  worker {i + 1} on port {port + i}: PID " in output
        assert f"finished  worker {i + 1} on port {port + i}: exit code 0" in output
    assert "summary  3 workers: 3 finished; restarts: 0" in output
    assert status == 0


def test_a_worker_that_fails_is_restarted_with_back_off(service_url: str, tmp_path: Path) -> None:
    code = """
import os, signal, sys
with open(sys.argv[1], "a+") as file:
    file.write("x")
    file.seek(0)
    runs = len(file.read())
if runs == 1:
    sys.exit(3)
if runs == 2:
    os.kill(os.getpid(), signal.SIGKILL)
"""
    output, status = completed(
        *("--url", service_url, "--port", free_port(), "--restart-delay", 0.1),
        *worker_command(code, tmp_path / "runs"),
    )
    assert "exit code 3; restart 1 of 5, in 0.1 s" in output
    assert "ended by SIGKILL; restart 2 of 5, in 0.2 s" in output
    assert "summary  1 workers: 1 finished; restarts: 2" in output
    assert status == 0


def test_a_worker_that_keeps_failing_stays_down_and_the_others_go_on(
    service_url: str, tmp_path: Path
) -> None:
    first = free_ports(2)
    code = f"""
import os, sys, time
if os.environ["PORT"] == "{first}":
    sys.exit(7)
while not os.path.exists(sys.argv[1]):
    time.sleep(0.05)
"""
    file = tmp_path / "finish"
    with running(
        *("--url", service_url, "--workers", 2, "--port", first),
        *("--restart-delay", 0.1, "--max-restarts", 2, *worker_command(code, file)),
    ) as process:
        output = output_until(process, "failed  ")
        assert "exit code 7; it has failed 3 times in a row and isn't started again" in output
        file.touch()
        output, status = rest(process)
    assert f"finished  worker 2 on port {first + 1}" in output
    assert "summary  2 workers: 1 failed, 1 finished; restarts: 2" in output
    assert status == 1


def test_always_restarts_workers_that_exit_with_0(service_url: str) -> None:
    output, status = completed(
        *("--url", service_url, "--port", free_port(), "--restart", "always"),
        *("--restart-delay", 0.05, "--max-restarts", 1, *worker_command("")),
    )
    assert "exit code 0; restart 1 of 1" in output
    assert "failed 2 times in a row" in output
    assert status == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=str)
def test_a_signal_is_passed_on_and_requests_in_flight_are_answered(
    service_url: str, tmp_path: Path, number: signal.Signals
) -> None:
    with running(
        *("--url", service_url, "--workers", 2, "--port", free_ports(2)),
        *worker_command(SERVER, tmp_path),
    ) as process:
        output_until(process, "worker is up", count=2)
        process.send_signal(number)
        output, status = rest(process)
    assert output.count(f"worker got {number.name}") == 2
    assert output.count("worker has answered") == 2
    assert output.count(": exit code 0") == 2
    assert "summary  2 workers: 2 stopped; restarts: 0" in output
    assert status == 0
    wait_until_gone(tmp_path)


def test_workers_that_do_not_stop_are_killed_with_all_that_they_started(
    service_url: str, tmp_path: Path
) -> None:
    # A shell that ignores the signals, as its child does.
    child = "import time; print('the child is up', flush=True); time.sleep(600)"
    script = f"""trap '' TERM; {sys.executable} -c "{child}" {tmp_path} & wait"""
    with running(
        *("--url", service_url, "--port", free_port(), "--stop-timeout", 0.5),
        *("--", "sh", "-c", f"{script}; echo {tmp_path}"),
    ) as process:
        output_until(process, "started  ")
        output_until(process, "the child is up")
        process.terminate()
        output, status = rest(process)
    assert "killed  worker 1" in output
    assert status == 1
    wait_until_gone(tmp_path)


def test_what_a_failed_worker_left_is_ended_before_its_restart(
    service_url: str, tmp_path: Path
) -> None:
    code = """
import subprocess, sys
if len(sys.argv) == 3:
    import time; time.sleep(600)
subprocess.Popen([*sys.orig_argv, "child"])
sys.exit(1)
"""
    output, status = completed(
        *("--url", service_url, "--port", free_port(), "--restart-delay", 0.1),
        *("--max-restarts", 1, *worker_command(code, tmp_path)),
    )
    assert "restart 1 of 1" in output
    assert status == 1
    wait_until_gone(tmp_path)


@pytest.mark.parametrize("guard_killed", [False, True])
def test_a_killed_command_leaves_no_worker(
    service_url: str, tmp_path: Path, guard_killed: bool
) -> None:
    with running(
        *("--url", service_url, "--workers", 2, "--port", free_ports(2)),
        *worker_command(SERVER, tmp_path),
    ) as process:
        output_until(process, "worker is up", count=2)
        if guard_killed:
            (guard,) = guards(process)
            guard.kill()
            deadline = time.monotonic() + 30
            while guards(process) in ([], [guard]):
                assert time.monotonic() < deadline
                time.sleep(0.05)
        process.kill()
        output, _ = rest(process)
    assert output.count("worker got SIGTERM") == 2
    assert output.count("worker has answered") == 2
    wait_until_gone(tmp_path)


def guards(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """Returns the process that ends the workers of a killed command."""
    found = []
    for child in psutil.Process(process.pid).children():
        with suppress(psutil.Error):  # it ends
            if "serve_app.command.worker_guard" in child.cmdline():
                found.append(child)
    return found


def test_nohup_is_respected(service_url: str, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # inherited, as from `nohup`
    try:
        with running(
            *("--url", service_url, "--port", free_port(), *worker_command(SERVER, tmp_path))
        ) as process:
            output_until(process, "worker is up")
            process.send_signal(signal.SIGHUP)
            process.send_signal(signal.SIGTERM)
            output, _ = rest(process)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert "worker got SIGTERM" in output
    assert "worker got SIGHUP" not in output


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The configuration of a service that needs no model."""
    args = {"model": {"name": "words", "source": "hashing:64"}, "cache": {"url": "none"}}
    content = {
        "http_options": {"host": "127.0.0.1"},
        "applications": [{"name": "embedserve", "args": args}],
    }
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(content), "utf-8")
    return file


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=str)
def test_the_service_starts_before_the_workers_and_ends_after_them(
    config: Path, tmp_path: Path, number: signal.Signals
) -> None:
    code = f"""
import os
from embedserve_client import Client
os.write(1, f"shape {{Client().embed(['a', 'b']).shape}}\\n".encode())
{SERVER.replace('"worker has answered"', '"after the signal", Client().embed("c").shape')}
"""
    service_port, port = free_port(), free_ports(2)
    with running(
        *("--config", config, "--service-port", service_port, "--workers", 2, "--port", port),
        *worker_command(code, tmp_path),
    ) as process:
        output = output_until(process, "worker is up", count=2)
        assert f"ready  http://127.0.0.1:{service_port}" in output
        assert output.count("shape (2, 64)") == 2
        process.send_signal(number)
        output, status = rest(process)
    assert output.count("worker got SIGTERM") == 2
    if number == signal.SIGTERM:
        assert output.count("after the signal (64,)") == 2
        assert "stopping  the service" in output
    assert status == (0 if number == signal.SIGTERM else -signal.SIGKILL)
    wait_until_gone(tmp_path)
    wait_until_gone(f"http://127.0.0.1:{service_port}")  # its supervisor


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--", "no-such-program"], 1, "There is no program 'no-such-program'"),
        (["--port", "65535", "--workers", "2", "--", "true"], 1, "There is no port 65536"),
        (["--port", "8010", "--service-port", "8010", "--", "true"], 1, "8010, which a worker"),
        (["--config", "no-such-config", "--", "true"], 1, "the name of a packaged configuration"),
        (["--url", "http://127.0.0.1:9", "--ray", "--", "true"], 1, "leave out --ray"),
        (["--url", "http://127.0.0.1:9", "--", "true"], 3, "Can't connect to 127.0.0.1:9"),
    ],
)
def test_a_mistake_is_a_one_line_error(
    arguments: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--port", str(free_port()), *arguments]) == status
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_a_port_in_use_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert main(["run", "--port", str(port), "--", "true"]) == 1
    assert f"Port {port}, which a worker would get, is in use" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [[], ["--workers", "0", "--", "true"], ["--port", "0", "--", "true"]]
)
def test_usage_errors(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["run", *arguments])
    assert exit_.value.code == 2


def test_only_one_module_calls_what_windows_lacks() -> None:
    """`process_group` calls it for the others, and `process_tree` only on POSIX systems."""
    modules = ("run", "restarts", "stop_signals", "worker", "worker_guard", "worker_pool")
    posix = re.compile(
        r"\b(os\.(fork|getpgid|getsid|getuid|killpg|setsid|kill)|start_new_session|preexec_fn"
        r"|SIG(KILL|HUP|USR1|CHLD|CONT|STOP)|fcntl|import pwd|resource)\b"
    )
    for module in modules:
        source = (ROOT / "serve_app" / "command" / f"{module}.py").read_text("utf-8")
        code = ast.unparse(_without_strings(ast.parse(source)))
        assert not posix.search(code), module


def _without_strings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = ""
    return tree
