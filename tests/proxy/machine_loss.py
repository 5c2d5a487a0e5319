"""A program for `test_machine_loss.py`: HAProxy before two machines, of which one loses power.

Prints, as JSON, which machine answered each of two requests that both were computing, and how often
each machine was asked.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from benchmarks.machines import GATEWAY, Machine, isolate

_REPLICA_PORT, _PROXY_PORT = 30_000, 8000
#: Longer than HAProxy waits for a machine that is silent.
_COMPUTES_S = 7.5
_TIMEOUT_S = 40.0


class Replica(BaseHTTPRequestHandler):
    """Computes each POST for a while, and answers with the machine's name."""

    name, posts = "", 0

    def do_GET(self) -> None:
        self._answer(f"{self.posts}")

    def do_POST(self) -> None:
        Replica.posts += 1
        self.rfile.read(int(self.headers["content-length"]))
        time.sleep(_COMPUTES_S)
        self._answer(self.name)

    def log_message(self, *arguments: object) -> None:
        """Prints nothing."""

    def _answer(self, text: str) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


def serve(name: str) -> None:
    Replica.name = name
    Replica.protocol_version = "HTTP/1.1"
    ThreadingHTTPServer(("", _REPLICA_PORT), Replica).serve_forever()


def fetch(url: str, body: bytes | None = None) -> str:
    with urllib.request.urlopen(url, body, timeout=_TIMEOUT_S) as reply:
        text: str = reply.read().decode()
        return text


def wait_until_answered(url: str) -> None:
    deadline_s = time.monotonic() + _TIMEOUT_S
    while True:
        try:
            fetch(url)
            return
        except OSError:
            assert time.monotonic() < deadline_s, url
            time.sleep(0.05)


def write_config(folder: Path, machines: list[Machine]) -> str:
    from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
    from ray.serve.config import HTTPOptions

    config = HAProxyConfig(
        http_options=HTTPOptions(host=GATEWAY, port=_PROXY_PORT),
        socket_path=str(folder / "admin.sock"),
        server_state_base=str(folder),
        server_state_file=str(folder / "server-state"),
        metrics_enabled=False,
        is_head=True,
        retry_on="conn-failure empty-response",
        retries=10,
    )
    servers = [ServerConfig(name=m.name, host=m.address, port=_REPLICA_PORT) for m in machines]
    backend = BackendConfig(name="http-app", path_prefix="/", app_name="app", servers=servers)
    api = HAProxyApi(config, {"app": backend}, str(folder / "haproxy.cfg"))
    api._generate_config_file_internal()
    return api.config_file_path


def main() -> None:
    isolate()
    with tempfile.TemporaryDirectory(prefix="es-") as directory:
        folder = Path(directory)
        one, other = machines = [Machine(name, n, {}) for n, name in enumerate(("one", "other"), 1)]
        for machine in machines:
            machine.start([sys.executable, "-m", __spec__.name, machine.name], folder / "log")
            wait_until_answered(f"http://{machine.address}:{_REPLICA_PORT}")
        launcher = [sys.executable, "-m", "serve_app.proxy.launcher", "-db", "-f"]
        proxy = subprocess.Popen([*launcher, write_config(folder, machines)], stdout=sys.stderr)
        url = f"http://{GATEWAY}:{_PROXY_PORT}/v1/embeddings"
        wait_until_answered(url)
        with ThreadPoolExecutor(2) as clients:
            answers = [clients.submit(fetch, url, b"a text") for _ in range(2)]
            wait_until_both_compute(machines)
            other.disconnect()
            names = [answer.result() for answer in answers]
        posts = fetch(f"http://{one.address}:{_REPLICA_PORT}")
        print(json.dumps({"answered_by": names, "asked": int(posts)}))
        proxy.kill()
        proxy.wait()


def wait_until_both_compute(machines: list[Machine]) -> None:
    deadline_s = time.monotonic() + _TIMEOUT_S
    while any(fetch(f"http://{m.address}:{_REPLICA_PORT}") != "1" for m in machines):
        assert time.monotonic() < deadline_s, threading.enumerate()
        time.sleep(0.05)


if __name__ == "__main__":
    serve(sys.argv[1]) if sys.argv[1:] else main()
