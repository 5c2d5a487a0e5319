"""Runs a service until a signal arrives, and restarts it when it fails.

start → wait for a signal or a failure → drain and stop, or start again
"""

import os
import signal
import threading
import time
from types import FrameType

from serve_app.command.progress import print_ready, print_step
from serve_app.command.restarts import Restarts
from serve_app.command.service_process import ServiceFailure, ServiceProcess, StartupError


def run_until_signal(
    service: ServiceProcess, *, drain_timeout_s: float, until_eof: bool = False
) -> None:
    """Runs a service until SIGINT or SIGTERM, and prints its progress.

    Args:
        service: the service, not started yet. Each restart starts its successor.
        drain_timeout_s: how long requests in flight may take after a signal.
        until_eof: stop at the end of standard input, too.

    Raises:
        StartupError: it couldn't be started, or has failed too often in a row.
    """
    restarts = Restarts()
    try:
        _accept_signal()
        if until_eof:
            terminate_at_eof()
        while True:
            ready_at = time.monotonic()
            try:
                service.start()
                for progress in service.wait_until_ready():
                    print_step("starting", progress)
                print_ready(service.url)
                ready_at = time.monotonic()
                service.watch()
            except (ServiceFailure, StartupError) as failure:
                if restarts.failures == 0 and isinstance(failure, StartupError):
                    raise
                restarts.add_failure(time.monotonic() - ready_at)
                print_step("failed", str(failure))
            service.stop(kill=True)
            if restarts.exhausted:
                raise StartupError(f"The service failed {restarts.failures} times in a row.")
            print_step("restart", str(restarts))
            time.sleep(restarts.delay_s)
            service = service.successor()
    except KeyboardInterrupt:
        _drain(service, drain_timeout_s)
    finally:
        service.stop()
        print_step("stopped", "all processes have ended")


def _drain(service: ServiceProcess, timeout_s: float) -> None:
    """Waits for the requests in flight, up to a timeout or until the next signal."""
    _accept_signal()
    print_step("draining", f"requests in flight, up to {timeout_s:g} s   (Ctrl-C again skips it)")
    try:
        if not service.drain(timeout_s):
            print_step("draining", "some requests take longer and are cut off")
    except KeyboardInterrupt:
        pass
    _accept_signal()
    print_step("stopping", "a few seconds   (Ctrl-C again kills it)")


def _accept_signal() -> None:
    """Turns the next SIGINT or SIGTERM into KeyboardInterrupt, even if the parent ignores SIGINT.

    Further signals are ignored until the next call, so that nothing interrupts the cleanup.
    """
    interrupts = iter(range(1))

    def interrupt(number: int, frame: FrameType | None) -> None:
        if next(interrupts, None) is not None:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, interrupt)


def terminate_at_eof() -> None:
    """Lets this process get SIGTERM at the end of standard input."""

    def read_to_eof() -> None:
        while os.read(0, 1 << 16):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=read_to_eof, daemon=True).start()
