"""A service that is there while somebody uses it: real processes, one of them the service."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from embedserve_client import Client, EmbedError, NotRunning, Retry, Supervisor
from embedserve_client.service_room import Room
from serve_app.command.ports import free_port
from tests.embedserve_client.scripted import scripted, vector

ROOT = Path(__file__).parents[2]


class Place:
    """A port, a folder to meet in, and what was started there."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.folder = folder
        self.room = Room(folder / "room")
        self.made: list[Supervisor] = []

    def command(self, *words: str) -> list[str]:
        module = "tests.embedserve_client.fake_service"
        return [sys.executable, "-m", module, str(self.port), *words]

    def supervisor(self, *words: str, **settings: Any) -> Supervisor:
        given: dict[str, Any] = {"ready_timeout_s": 60.0, "first_pause_s": 0.05, **settings}
        self.made.append(
            Supervisor(
                self.port, command=self.command(*words), folder=self.folder / "room", **given
            )
        )
        return self.made[-1]

    def processes(self) -> list[psutil.Process]:
        """Keepers and services of this place."""
        every = psutil.process_iter(["cmdline"])
        mine = (str(self.folder), f"fake_service {self.port}")
        return [p for p in every if any(word in " ".join(p.info["cmdline"] or []) for word in mine)]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    found = Place(tmp_path)
    yield found
    for supervisor in found.made:
        supervisor.stop()
    until(lambda: not found.processes())


def until(true: Callable[[], object], timeout_s: float = 30) -> None:
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end, f"Not within {timeout_s} s."
        time.sleep(0.05)


def service_pid(supervisor: Supervisor) -> int:
    pid = supervisor.status().pid
    assert pid is not None
    return pid


def test_it_starts_the_service_and_ends_it(place: Place) -> None:
    told: list[str] = []
    supervisor = place.supervisor("--slow-s", "0.5", on_progress=told.append)
    assert supervisor.status().state == "absent"
    status = supervisor.start()
    assert (status.state, status.managed, status.healthy) == ("ready", True, True)
    assert "fake service: starting" in told
    with Client(supervisor.url) as client:
        assert client.embed("abc").tolist() == vector("abc")
    supervisor.stop()
    assert supervisor.status().state == "absent"
    until(lambda: not place.processes())


def test_two_programs_share_one(place: Place) -> None:
    first, second = place.supervisor(), place.supervisor()
    first.start()
    pid = service_pid(first)
    assert second.start().pid == pid
    first.stop()  # at once: the other one still needs it
    assert second.status().healthy
    assert service_pid(second) == pid
    second.stop()
    until(lambda: not place.processes())


def test_programs_that_begin_together_start_one(place: Place) -> None:
    several = [place.supervisor("--slow-s", "0.3") for _ in range(4)]
    threads = [threading.Thread(target=each.start) for each in several]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({service_pid(each) for each in several}) == 1
    lines = [process.cmdline() for process in place.processes()]
    assert len([line for line in lines if "embedserve_client.keeper" not in line]) == 1


def test_one_that_somebody_else_started_is_used_and_left(place: Place) -> None:
    with scripted() as server:
        supervisor = Supervisor(
            server.server_address[1], command=["false"], folder=place.folder / "other"
        )
        status = supervisor.start()
        assert (status.state, status.managed) == ("ready", False)
        with pytest.raises(NotRunning, match="wasn't started here"):
            supervisor.restart()
        supervisor.stop()
        with Client(server.url) as client:
            assert client.is_healthy()


def test_a_service_that_dies_is_started_again(place: Place) -> None:
    supervisor = place.supervisor()
    supervisor.start()
    before = service_pid(supervisor)
    os.kill(before, signal.SIGKILL)
    until(lambda: supervisor.status().restarts == 1 and supervisor.status().healthy)
    assert service_pid(supervisor) != before


def test_it_can_be_restarted_by_hand(place: Place) -> None:
    supervisor = place.supervisor()
    supervisor.start()
    before = service_pid(supervisor)
    status = supervisor.restart()
    assert (status.state, status.restarts) == ("ready", 1)
    assert status.pid != before


def test_one_that_fails_at_first_is_tried_again(place: Place) -> None:
    fails = place.folder / "fails"
    fails.write_text("3")
    status = place.supervisor("--fails", str(fails)).start()
    assert (status.state, status.restarts) == ("ready", 3)


def test_one_that_does_not_stay_up_is_given_up_with_its_own_words(place: Place) -> None:
    fails = place.folder / "fails"
    fails.write_text("99")
    supervisor = place.supervisor("--fails", str(fails), max_restarts=2)
    with pytest.raises(NotRunning, match=r"status 3.*\nfake service: the disk is full"):
        supervisor.start()
    assert supervisor.status().state == "failed"
    assert fails.read_text() == "96"
    assert "the disk is full" in place.room.log.read_text()
    fails.write_text("0")  # mended: the next start tries again
    assert supervisor.start().state == "ready"


def test_a_command_that_is_not_there(place: Place) -> None:
    supervisor = Supervisor(
        place.port,
        command=["/no/such/program"],
        folder=place.folder / "room",
        first_pause_s=0.01,
        max_restarts=1,
    )
    with pytest.raises(NotRunning, match="can't be started"):
        supervisor.start()


def test_one_that_is_never_ready_is_told_of(place: Place) -> None:
    supervisor = place.supervisor("--slow-s", "60", ready_timeout_s=1.0)
    with pytest.raises(NotRunning, match="not ready after 1 s"):
        supervisor.start()


PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from embedserve_client import Supervisor
supervisor = Supervisor({port}, command={command!r}, folder=Path({folder!r}))
supervisor.start()
print("started", flush=True)
{then}
"""


def program(place: Place, then: str) -> "subprocess.Popen[str]":
    code = PROGRAM.format(
        port=place.port, command=place.command(), folder=str(place.folder / "room"), then=then
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout
    assert process.stdout.readline() == "started\n"
    return process


@pytest.mark.parametrize(
    "number", [None, signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda n: n and n.name
)
def test_the_service_ends_with_the_last_program_however_that_ends(
    place: Place, number: signal.Signals | None
) -> None:
    then = "" if number is None else "signal.signal(2, signal.default_int_handler); time.sleep(60)"
    process = program(place, then)
    if number is not None:
        process.send_signal(number)
    process.communicate(timeout=30)
    until(lambda: not place.processes())


def test_a_killed_keeper_takes_the_service_along_and_is_replaced(place: Place) -> None:
    supervisor = place.supervisor()
    supervisor.start()
    before = service_pid(supervisor)
    keepers = [p for p in place.processes() if "embedserve_client.keeper" in p.cmdline()]
    keepers[0].kill()
    until(lambda: not psutil.pid_exists(before) or not supervisor.status().healthy)
    until(lambda: supervisor.status().healthy and service_pid(supervisor) != before)


def test_a_kill_in_the_middle_of_a_thousand_calls(place: Place) -> None:
    supervisor = place.supervisor()
    supervisor.start()
    wrong: list[str] = []
    done = threading.Semaphore(0)

    patient = Retry(attempts=1000, most_wait_s=0.5)  # the time is what bounds it
    with Client(supervisor.url, timeout_s=60, retry=patient) as client:

        def ask(first: int) -> None:
            for i in range(first, 1000, 8):
                text = f"call {i}"
                try:
                    if not np.array_equal(client.embed(text), vector(text)):
                        wrong.append(text)
                except EmbedError as error:
                    wrong.append(repr(error))
                done.release()

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for _ in range(300):
            done.acquire()
        os.kill(service_pid(supervisor), signal.SIGKILL)
        for thread in threads:
            thread.join()
    assert wrong == []
    assert supervisor.status().restarts == 1
