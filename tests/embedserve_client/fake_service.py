"""A service that a supervisor can start: `python -m tests.embedserve_client.fake_service PORT`.

It answers as `scripted.py` does, ends when its input does, and fails to start as often as it is
told to: `--fails FILE` holds how often.
"""

import argparse
import os
import sys
import threading
import time
from pathlib import Path

from tests.embedserve_client import scripted


class Server(scripted.Scripted):
    """On a port of its own."""

    port = 0
    allow_reuse_address = True

    def server_bind(self) -> None:
        self.server_address = ("127.0.0.1", self.port)
        super().server_bind()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--fails", type=Path)
    parser.add_argument("--slow-s", type=float, default=0.0)
    arguments = parser.parse_args()
    print("fake service: starting", flush=True)
    threading.Thread(target=end_with_input, daemon=True).start()
    if arguments.fails:
        left = int(arguments.fails.read_text())
        arguments.fails.write_text(str(left - 1))
        if left > 0:
            print("fake service: the disk is full", flush=True)
            return 3
    time.sleep(arguments.slow_s)
    Server.port = arguments.port
    with Server() as server:
        server.serve_forever()
    return 0


def end_with_input() -> None:
    while os.read(0, 1024):
        pass
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
