"""A model of the Hugging Face hub, for which a server of the test stands."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from serve_app.config import MINILM
from serve_app.models import model_dir

COMMIT = "0123456789abcdef0123456789abcdef01234567"
#: Prints the specification and the files of a hub model.
RESOLVE = """
import sys
from serve_app.config import ModelConfig
from serve_app.errors import ModelSourceError
from serve_app.models import model_dir, resolve
config = ModelConfig(name="m", source="hub:org/model", revision=sys.argv[1])
try:
    print(resolve(config).dim)
    for file in sorted(model_dir(config).rglob("*")):
        print(file.relative_to(model_dir(config)))
except ModelSourceError as error:
    print(f"refused: {error}")
"""


class Hub(ThreadingHTTPServer):
    """Serves one repository at one commit."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def resolve(self, cache: Path, commit: str = COMMIT, **env: str) -> list[str]:
        """Resolves the model in a process of its own; returns what it prints."""
        env = {
            **os.environ,
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(cache),
            "HF_HUB_DISABLE_XET": "1",
            **env,
        }
        completed = subprocess.run(
            [sys.executable, "-c", RESOLVE, commit],
            env=env,
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        return completed.stdout.splitlines()


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == f"/api/models/org/model/tree/{COMMIT}":
            files = [
                {
                    "type": "file",
                    "path": str(file.relative_to(self.server.folder)),
                    "size": file.stat().st_size,
                    "oid": "0" * 40,
                }
                for file in self.server.folder.rglob("*")
                if file.is_file()
            ]
            self._send(json.dumps(files).encode())
        elif path.startswith(f"/org/model/resolve/{COMMIT}/"):
            name = path.partition(f"{COMMIT}/")[2]
            self._send((self.server.folder / name).read_bytes())
        else:
            self.send_error(404)

    def _send(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hash(content) & 0xFFFFFFFF:x}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    folder = tmp_path / "repository"
    shutil.copytree(model_dir(MINILM), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    for name in ("model.safetensors", "pytorch_model.bin", "tf_model.h5", "onnx/model.onnx"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"not really weights")
    with Hub(folder) as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.02,))
        thread.start()
        yield hub
        hub.shutdown()
        thread.join()


def test_only_the_files_that_are_read_are_downloaded(hub: Hub, tmp_path: Path) -> None:
    dim, *files = hub.resolve(tmp_path / "cache")
    assert dim == "384"
    assert {"model.safetensors", "modules.json", "1_Pooling/config.json"} <= {*files}
    assert not {"pytorch_model.bin", "tf_model.h5", "onnx/model.onnx"} & {*files}


def test_other_weights_are_downloaded_where_there_are_no_safetensors(
    hub: Hub, tmp_path: Path
) -> None:
    (hub.folder / "model.safetensors").unlink()
    dim, *files = hub.resolve(tmp_path / "cache")
    assert dim == "384"
    assert "pytorch_model.bin" in files


def test_a_downloaded_model_needs_no_hub(hub: Hub, tmp_path: Path) -> None:
    first = hub.resolve(tmp_path / "cache")
    shutil.rmtree(hub.folder)
    assert hub.resolve(tmp_path / "cache", HF_HUB_OFFLINE="1") == first


def test_an_unknown_commit_is_an_error(hub: Hub, tmp_path: Path) -> None:
    (line,) = hub.resolve(tmp_path / "cache", commit=COMMIT[::-1])
    assert line.startswith("refused: Could not download org/model")
