"""A service for supervisor tests: `python -m tests.embedserve_client.fake_service PORT`.

It responds like `scripted_server` and exits when its standard input ends. With `--fails FILE`, it
fails to start as many times as the number in the file. With `--hangs FILE`, it stops accepting
connections once the file exists. With `--unhealthy`, it is healthy for the first three checks only.
"""

import argparse
import os
import sys
import threading
import time
from pathlib import Path

from tests.embedserve_client.scripted_server import ScriptedServer


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--fails", type=Path)
    parser.add_argument("--hangs", type=Path)
    parser.add_argument("--unhealthy", action="store_true")
    parser.add_argument("--startup-s", type=float, default=0.0)
    arguments = parser.parse_args()
    print("fake service: starting", flush=True)
    threading.Thread(target=exit_at_end_of_input, daemon=True).start()
    if arguments.fails:
        remaining = int(arguments.fails.read_text())
        arguments.fails.write_text(str(remaining - 1))
        if remaining > 0:
            print("fake service: the disk is full", flush=True)
            return 3
    time.sleep(arguments.startup_s)
    with ScriptedServer(arguments.port) as server:
        if arguments.hangs:
            threading.Thread(target=hang_up, args=(server, arguments.hangs), daemon=True).start()
        if arguments.unhealthy:
            threading.Thread(target=fail_checks, args=(server,), daemon=True).start()
        server.serve_forever()
    if arguments.hangs:
        time.sleep(600)
    return 0


def fail_checks(server: ScriptedServer) -> None:
    while server.paths.count("/health") < 3:
        time.sleep(0.01)
    server.healthy = False


def hang_up(server: ScriptedServer, file: Path) -> None:
    while not file.exists():
        time.sleep(0.05)
    file.unlink()
    server.shutdown()


def exit_at_end_of_input() -> None:
    while os.read(0, 1024):
        pass
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
