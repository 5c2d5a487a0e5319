"""Several machines within this one: namespaces of Linux, joined by a network of their own.

A machine has its own network, processes, host name, shared memory, home and temporary directory.
All of it vanishes with the process that called `isolate`, and nothing can be reached from outside.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

#: Where a machine mounts its own file system. The directory exists on each Linux system.
MACHINE_DIR = Path("/mnt")
#: The address of the process that called `isolate`, in the network of the machines.
GATEWAY = "10.0.0.254"
_ISOLATED = "EMBEDSERVE_ISOLATED"
_NAMESPACES = ("--net", "--mount", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc")
_NETWORK = (
    "mount -t tmpfs tmpfs /run",  # where `ip` keeps the names of namespaces
    "ip link set lo up",
    "ip link add machines type bridge",
    f"ip addr add {GATEWAY}/24 dev machines",
    "ip link set machines up",
)
_START_MACHINE = f"""
hostname "$1"
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs {MACHINE_DIR}
cd {MACHINE_DIR}
echo "127.0.0.1 localhost" > hosts
echo "$2 $1" >> hosts
mount --bind hosts /etc/hosts
echo "hosts: files" > nsswitch.conf
mount --bind nsswitch.conf /etc/nsswitch.conf
cd "$3"
shift 3
"$@"
"""
_TIMEOUT_S = 120.0


def unavailable_reason() -> str | None:
    """Returns why this system can't run several machines; None: it can."""
    missing = [name for name in ("unshare", "nsenter", "ip") if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not found: install util-linux and iproute2"
    command = f"{' && '.join(_NETWORK)} && mount -t tmpfs tmpfs {MACHINE_DIR}"
    done = subprocess.run(
        [*_unshare(), "sh", "-c", command], capture_output=True, text=True, check=False
    )
    return None if done.returncode == 0 else f"no namespaces: {done.stderr.strip()}"


def isolate() -> None:
    """Runs this program once more, in namespaces that the machines share. Returns there only."""
    if _ISOLATED not in os.environ:
        os.environ[_ISOLATED] = "1"
        command = [*_unshare(), sys.executable, *sys.orig_argv[1:]]
        os.execvp(command[0], command)
    for command_line in _NETWORK:
        subprocess.run(command_line.split(), check=True)


def _unshare() -> list[str]:
    as_root = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", *as_root, *_NAMESPACES]


class Machine:
    """A machine, which runs a program until that ends or the machine fails."""

    def __init__(self, name: str, number: int, env: Mapping[str, str]) -> None:
        """Creates the machine and connects it to the network.

        Args:
            name: its host name.
            number: the last part of its address, which is 10.0.0.`number`.
            env: environment variables of its programs.
        """
        self.name = name
        self.address = f"10.0.0.{number}"
        self._cable = f"cable{number}"
        directory = str(MACHINE_DIR)
        self._env = {
            **os.environ,
            **{"HOME": directory, "TMPDIR": directory, "RAY_TMPDIR": directory},
            **env,
        }
        self._process: subprocess.Popen[bytes] | None = None
        _ip(f"netns add {name}")
        _ip(f"link add {self._cable} type veth peer name eth0 netns {name}")
        _ip(f"link set {self._cable} master machines up")
        _ip(f"-n {name} addr add {self.address}/24 dev eth0")
        _ip(f"-n {name} link set eth0 up")
        _ip(f"-n {name} link set lo up")

    def start(self, command: Sequence[str], log: Path) -> None:
        """Starts the machine with a program, whose output goes to `log`."""
        namespaces = [option for option in _NAMESPACES if option != "--net"]
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [
                    *("ip", "netns", "exec", self.name, "unshare", *namespaces),
                    *("sh", "-ec", _START_MACHINE, "sh"),
                    *(self.name, self.address, os.getcwd(), *command),
                ],
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    @property
    def is_running(self) -> bool:
        """Whether the program runs."""
        return self._process is not None and self._process.poll() is None

    def call(self, command: Sequence[str], *, timeout_s: float = _TIMEOUT_S) -> str:
        """Runs another program on the machine and returns its output.

        Raises:
            RuntimeError: the program failed; the message has its output.
        """
        namespaces = ["--net", "--mount", "--pid", "--uts", f"--wd={Path.cwd()}"]
        done = subprocess.run(
            ["nsenter", "--target", str(self._first_pid()), *namespaces, *command],
            env=self._env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{self.name}: {command}: {done.stdout}{done.stderr}")
        return done.stdout

    def processes(self) -> list[psutil.Process]:
        """Returns all processes of the machine."""
        if self._process is None or not self.is_running:
            return []
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self._process.pid).children(recursive=True)
        return []

    def copy(self, directory: str, target: Path) -> None:
        """Copies a directory of the machine's file system to this one."""
        self.call(["cp", "-rL", f"{MACHINE_DIR}/{directory}", str(target)])

    def kill(self) -> None:
        """Kills all processes at once (SIGKILL): the kernel closes their connections."""
        if self._process is not None:
            self._process.kill()  # with its first process, the kernel ends all of a namespace
            self._process.wait(_TIMEOUT_S)
            self._process = None

    def disconnect(self) -> None:
        """Takes the machine off the network, as a loss of power does: nobody is told."""
        _ip(f"link set {self._cable} down")

    def _first_pid(self) -> int:
        """Returns the id of the first process of the machine."""
        return self.processes()[0].pid


def _ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True)
