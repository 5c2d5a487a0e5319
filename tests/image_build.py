"""Runs the instructions of the Dockerfile on a machine without Docker, then the image's command.

    sudo python -m tests.image_build --root /tmp/image

The base image is this machine's own root directory, with the running Python in /usr/local; each
stage is a layer (overlay) above it, so the folder must be on another file system than the root. It
takes root, Linux, and the registries of packages. `Container` runs an image's command.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dockerfile_parse import DockerfileParser

ROOT = Path(__file__).parents[1]
_DEFAULT_ENV = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LD_LIBRARY_PATH": "/usr/local/lib",  # the copied Python finds its own library
}
_VARIABLE = re.compile(r"\$\{(\w+)\}|\$(\w+)")
_READY_TIMEOUT_S = 240.0
_STOP_TIMEOUT_S = 60.0
_LOAD_S = 8.0


@dataclass(frozen=True, slots=True)
class Image:
    """The result of a stage: its files, as layers, and what a container of it runs."""

    layers: tuple[Path, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    workdir: str = "/"
    user: str = "0"
    volumes: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    health_check: tuple[str, ...] = ()
    stop_signal: str = "SIGTERM"


def parse_dockerfile(file: Path) -> list[tuple[str, str]]:
    """Returns the name and the arguments of each instruction, without comments."""
    with file.open("rb") as content:
        parsed = DockerfileParser(fileobj=content).structure
    return [(i["instruction"], i["value"]) for i in parsed if i["instruction"] != "COMMENT"]


class ImageBuild:
    """Builds the stages of a Dockerfile, one layer each."""

    def __init__(self, dockerfile: Path, root: Path, base: Path) -> None:
        """Builds nothing yet.

        Args:
            dockerfile: its folder is the context.
            root: where the layers are written.
            base: a folder whose content is above this machine's root directory in the base image.
        """
        self._context, self._root, self._base = dockerfile.parent, root, base
        self._instructions = parse_dockerfile(dockerfile)
        self._stages: dict[str, Image] = {}
        self._image = Image()
        self._args: dict[str, str] = {}
        self._interpreter: list[str] = []

    def build(self, target: str) -> Image:
        """Runs all instructions up to the end of a stage.

        Raises:
            subprocess.CalledProcessError: an instruction failed.
        """
        global_args: dict[str, str] = {}
        for name, value in self._instructions:
            if name == "ARG" and not self._image.layers:
                global_args |= [_assignment(value)]
            elif name == "FROM":
                if target in self._stages:
                    break
                base, _, stage = value.partition(" AS ")
                self._start(_expand(base, global_args), stage)
            else:
                print(f"{name} {value}", flush=True)
                getattr(self, f"_{name.lower()}")(value)
            if self._image.layers:
                self._stages[stage] = self._image
        return self._stages[target]

    def _start(self, base: str, stage: str) -> None:
        layer = self._root / stage
        layer.mkdir(parents=True)
        image = self._stages.get(base) or Image(layers=(self._base,), env=_DEFAULT_ENV)
        self._image = replace(image, layers=(layer, *image.layers))
        self._args, self._interpreter = {}, ["/bin/sh", "-c"]

    def _arg(self, value: str) -> None:
        self._args |= [_assignment(value)]

    def _env(self, value: str) -> None:
        pairs = dict(_assignment(_expand(word, self._image.env)) for word in shlex.split(value))
        self._image = replace(self._image, env={**self._image.env, **pairs})

    def _shell(self, value: str) -> None:
        self._interpreter = json.loads(value)

    def _workdir(self, value: str) -> None:
        self._image = replace(self._image, workdir=value)
        (self._image.layers[0] / value.lstrip("/")).mkdir(parents=True, exist_ok=True)

    def _user(self, value: str) -> None:
        self._image = replace(self._image, user=value)

    def _volume(self, value: str) -> None:
        self._image = replace(self._image, volumes=(*self._image.volumes, value))

    def _entrypoint(self, value: str) -> None:
        self._image = replace(self._image, entrypoint=tuple(json.loads(value)))

    def _cmd(self, value: str) -> None:
        self._image = replace(self._image, command=tuple(json.loads(value)))

    def _healthcheck(self, value: str) -> None:
        command = value[value.index("CMD") + 3 :]
        self._image = replace(self._image, health_check=tuple(json.loads(command)))

    def _stopsignal(self, value: str) -> None:
        self._image = replace(self._image, stop_signal=value)

    def _expose(self, value: str) -> None:
        """Publishes nothing by itself."""

    def _copy(self, value: str) -> None:
        words = shlex.split(value)
        options = dict(word[2:].split("=", 1) for word in words if word.startswith("--"))
        *sources, target = [word for word in words if not word.startswith("--")]
        path = Path(target) if target.startswith("/") else Path(self._image.workdir) / target
        destination = self._image.layers[0] / str(path).lstrip("/")
        for source in sources:
            origins = [self._context / source]
            if "from" in options:
                layers = self._stages[options["from"]].layers
                origins = [layer / source.lstrip("/") for layer in layers]
            file = next(origin for origin in origins if origin.exists())
            if file.is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "results", "*.egg-info")
                shutil.copytree(
                    file, destination, ignore=ignored, dirs_exist_ok=True, symlinks=True
                )
            else:
                folder = destination if target.endswith("/") else destination.parent
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, folder / file.name, follow_symlinks=False)
        if "chown" in options:
            owner = options["chown"]
            self._run_in_layer(["chown", "-R", f"{owner}:", f"/{target.lstrip('/')}"], user="0")

    def _run(self, value: str) -> None:
        self._run_in_layer([*self._interpreter, value], user=self._image.user)

    def _run_in_layer(self, command: Sequence[str], *, user: str) -> None:
        work = self._root / "work"
        merged = self._root / "merged"
        for folder in (work, merged):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        upper, *lower = self._image.layers
        variables = {**self._image.env, **self._args, **_registry_env()}
        script = (
            f"{_mount(upper, lower, work, merged)}; "
            f"mount --rbind /dev {merged}/dev; mount -t proc proc {merged}/proc; "
            f"mount -t tmpfs tmpfs {merged}/tmp; cd /; "
            f"exec chroot --userspec={user}:{user} {merged} "
            f'{_env_command(variables)} sh -c \'cd "$0" && exec "$@"\' '
            f"{self._image.workdir} {shlex.join(command)}"
        )
        subprocess.run(["unshare", "--mount", "sh", "-ec", script], check=True)


class Container:
    """A running container: own processes, network and /tmp; a read-only root; no privileges."""

    def __init__(
        self,
        image: Image,
        folder: Path,
        *,
        arguments: Sequence[str] = (),
        files: Mapping[str, str] | None = None,
    ) -> None:
        """Starts the image's command.

        Args:
            image: what runs.
            folder: for the volumes and the mount; it must not exist.
            arguments: in place of the image's `CMD`.
            files: path in the container → content.
        """
        self._image = image
        for name in ("merged", "upper", "work", "volumes"):
            (folder / name).mkdir(parents=True)
        merged = folder / "merged"
        mounts = []
        for path, content in (files or {}).items():
            layer = folder / "upper" / path.lstrip("/")
            layer.parent.mkdir(parents=True, exist_ok=True)
            layer.write_text(content, "utf-8")
        for volume in image.volumes:
            source = folder / "volumes" / volume.strip("/").replace("/", "-")
            origin = next(p / volume[1:] for p in image.layers if (p / volume[1:]).exists())
            subprocess.run(["cp", "-a", origin, source], check=True)
            mounts.append(f"mount --bind {source} {merged}{volume}")
        command = [*image.entrypoint, *(arguments or image.command)]
        script = "; ".join(
            [
                "ip link set lo up",
                _mount(folder / "upper", image.layers, folder / "work", merged),
                *mounts,
                f"mount -t proc proc {merged}/proc",
                f"mount --rbind /dev {merged}/dev",
                f"mount -t tmpfs -o size=1g tmpfs {merged}/dev/shm",
                f"mount -t tmpfs -o mode=1777 tmpfs {merged}/tmp",
                f"mount -o remount,ro,bind {merged}",
                f"cd / && exec {self._enter(merged)} {shlex.join(command)}",
            ]
        )
        namespaces = ["--mount", "--net", "--ipc", "--pid", "--fork", "--kill-child"]
        self.process = subprocess.Popen(["unshare", *namespaces, "sh", "-ec", script])
        self._merged = merged

    def _enter(self, merged: Path) -> str:
        user = self._image.user
        return (
            f"chroot {merged} setpriv --reuid={user} --regid={user} --clear-groups "
            f"--no-new-privs --bounding-set=-all {_env_command(self._image.env)} "
            f'sh -c \'cd "$0" && exec "$@"\' {self._image.workdir}'
        )

    @property
    def init(self) -> int:
        """The first process of the container, as this machine numbers it."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        while not (pids := children.read_text().split()):
            assert self.process.poll() is None, "The container has ended."
            time.sleep(0.05)
        return int(pids[0])

    def execute(self, command: Sequence[str], **options: Any) -> "subprocess.CompletedProcess[str]":
        """Runs another command in the container, as `docker exec` does."""
        script = f"cd / && exec {self._enter(self._merged)} {shlex.join(command)}"
        enter = ["nsenter", "-t", str(self.init), "-m", "-n", "-i", "-p", "sh", "-c", script]
        return subprocess.run(enter, capture_output=True, text=True, check=False, **options)

    def wait_until_healthy(self) -> None:
        """Runs the image's health check until it succeeds."""
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while self.execute(self._image.health_check).returncode:
            assert self.process.poll() is None, "The container has ended."
            assert time.monotonic() < deadline, "The container isn't healthy."
            time.sleep(1)

    def kill(self) -> None:
        """Ends all processes of the container. `unshare` can't: they run as another user."""
        if self.process.poll() is None:
            os.kill(self.init, signal.SIGKILL)
        self.process.wait()

    def enter_network(self) -> list[str]:
        """Returns the start of a command that runs in the container's network only."""
        return ["nsenter", "-t", str(self.init), "-n"]


def _mount(upper: Path, lower: Sequence[Path], work: Path, merged: Path) -> str:
    layers = ":".join([*map(str, lower), "/"])
    return f"mount -t overlay overlay -o lowerdir={layers},upperdir={upper},workdir={work} {merged}"


def _assignment(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name, "".join(shlex.split(value))


def _expand(text: str, variables: Mapping[str, str]) -> str:
    return _VARIABLE.sub(lambda match: variables.get(match[1] or match[2], ""), text)


def _env_command(variables: Mapping[str, str]) -> str:
    return f"env -i {shlex.join(f'{name}={value}' for name, value in variables.items())}"


def _registry_env() -> dict[str, str]:
    """Returns what package installers need on this machine, such as a certificate."""
    names = ("PIP_CERT", "PIP_FIND_LINKS", "PIP_DEFAULT_TIMEOUT", "PIP_INDEX_URL", "SSL_CERT_FILE")
    return {name: os.environ[name] for name in names if name in os.environ}


def base_layer(folder: Path) -> Path:
    """Copies the running Python to `usr/local` of a folder, where the base image has it."""
    local = folder / "usr" / "local"
    local.mkdir(parents=True)
    for name in ("bin", "lib", "include"):
        subprocess.run(["cp", "-a", f"{sys.base_prefix}/{name}", local], check=True)
    for name in ("python", "python3"):
        (local / "bin" / name).unlink(missing_ok=True)
        (local / "bin" / name).symlink_to(f"python3.{sys.version_info.minor}")
    shutil.rmtree(local / "lib" / f"python3.{sys.version_info.minor}" / "site-packages")
    site = local / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    site.mkdir()
    subprocess.run([local / "bin" / "python", "-m", "ensurepip"], check=True, capture_output=True)
    return folder


def stop_under_load(image: Image, folder: Path) -> int:
    """Runs the CPU image, checks it, and stops it while clients send; returns the exit status."""
    key = subprocess.run(
        [sys.executable, "-m", "serve_app.command.main", "key", "new", "test"],
        capture_output=True,
        text=True,
        check=True,
    )
    secret = key.stderr.split("anywhere: ")[1].split()[0]
    container = Container(
        image, folder, files={"/etc/embedserve/keys.yaml": f"keys:\n{key.stdout}"}
    )
    try:
        container.wait_until_healthy()
        print(container.execute(["embedserve", "check", "--key", secret]).stdout)
        command = [
            sys.executable,
            "-m",
            "tests.drain_load",
            "http://127.0.0.1:8000",
            "--key",
            secret,
        ]
        load = subprocess.Popen([*container.enter_network(), *command])
        time.sleep(_LOAD_S)
        started_at = time.monotonic()
        os.kill(container.init, signal.Signals[image.stop_signal])
        status = container.process.wait(_STOP_TIMEOUT_S)
        print(f"exit status {status} after {time.monotonic() - started_at:.1f} s")
        return status or load.wait(_STOP_TIMEOUT_S)
    finally:
        container.kill()


def main() -> int:
    """Builds an image, and runs that for CPUs; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="a folder that doesn't exist yet")
    parser.add_argument("--target", default="cpu", choices=["cpu", "cuda"])
    arguments = parser.parse_args()
    started_at = time.monotonic()
    base = base_layer(arguments.root / "base")
    image = ImageBuild(ROOT / "Dockerfile", arguments.root, base).build(arguments.target)
    print(f"built in {time.monotonic() - started_at:.0f} s: {image}")
    return 0 if arguments.target == "cuda" else stop_under_load(image, arguments.root / "run")


if __name__ == "__main__":
    sys.exit(main())
