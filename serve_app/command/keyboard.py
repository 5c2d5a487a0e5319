"""Single keys from the terminal, while a command draws on it."""

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Iterator

if sys.platform != "win32":
    import termios
    import tty

_ESCAPE = b"\x1b"
_READ_BYTES = 256


@contextlib.contextmanager
def read_keys(on_key: Callable[[str], None], on_end: Callable[[], None]) -> Iterator[None]:
    """Calls back for each key within the block, and leaves the terminal as it was.

    Belongs to the running event loop. Without a terminal on standard input, and on Windows, no key
    is read; Ctrl-C works everywhere.

    Args:
        on_key: gets the character.
        on_end: there will be no more keys: the terminal is gone.
    """
    if sys.platform == "win32" or not sys.stdin.isatty():
        yield
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    loop = asyncio.get_running_loop()

    def read() -> None:
        try:
            data = os.read(descriptor, _READ_BYTES)
        except OSError:  # a terminal that was closed
            data = b""
        if not data:
            loop.remove_reader(descriptor)
            on_end()
        elif not data.startswith(_ESCAPE):  # an arrow key is several characters
            for char in data.decode("ascii", "ignore"):
                on_key(char)

    tty.setcbreak(descriptor, termios.TCSANOW)
    loop.add_reader(descriptor, read)
    try:
        yield
    finally:
        loop.remove_reader(descriptor)
        with contextlib.suppress(termios.error):
            termios.tcsetattr(descriptor, termios.TCSAFLUSH, before)
