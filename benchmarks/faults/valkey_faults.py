"""The Valkey server of the shared cache is slow, full, read-only, locked or empty."""

import secrets
import threading
from collections.abc import Mapping
from contextlib import suppress

import redis

from .fault import Fault, Scene


class SlowValkey(Fault):
    """Each command waits for up to 0.3 s, which is longer than the service waits."""

    name = "valkey-slow"
    description = "each command to Valkey waits for up to 0.3 s, for 8 s"

    def __init__(self) -> None:
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def inject(self, scene: Scene) -> None:
        """Starts to pause the server again and again."""
        client = scene.service.valkey()
        self._stopped.clear()
        self._thread = threading.Thread(target=self._pause, args=(client,), daemon=True)
        self._thread.start()

    def heal(self, scene: Scene) -> None:
        """Ends the pauses."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def _pause(self, client: redis.Redis) -> None:
        with suppress(redis.RedisError):
            while not self._stopped.wait(0.35):
                client.client_pause(300)


class ConfiguredValkey(Fault):
    """Settings of the running server are changed, and later restored."""

    def __init__(self, name: str, description: str, settings: Mapping[str, str]) -> None:
        """A fault of settings.

        Args:
            name: of the fault.
            description: a clause for the table.
            settings: of `valkey.conf`, as they are during the fault.
        """
        self.name, self.description = name, f"{description}, for 8 s"
        self._settings = settings
        self._previous: dict[str, str] = {}

    def inject(self, scene: Scene) -> None:
        """Changes the settings."""
        client = scene.service.valkey()
        self._previous = {name: str(client.config_get(name)[name]) for name in self._settings}
        for name, value in self._settings.items():
            client.config_set(name, value)

    def heal(self, scene: Scene) -> None:
        """Restores the settings."""
        if self._previous:
            client = scene.service.valkey()
            for name, value in self._previous.items():
                client.config_set(name, value)
            self._previous = {}


class LockedValkey(Fault):
    """The server wants a password that the service doesn't know."""

    name = "valkey-password"
    description = "Valkey wants another password and closes all connections, for 8 s"

    def __init__(self) -> None:
        self._password = ""

    def inject(self, scene: Scene) -> None:
        """Sets a password and closes the connections of the service."""
        client = scene.service.valkey()
        self._password = secrets.token_hex(16)
        client.config_set("requirepass", self._password)
        client = scene.service.valkey(self._password)
        client.client_kill_filter(_type="normal", skipme=True)

    def heal(self, scene: Scene) -> None:
        """Removes the password."""
        if self._password:
            client = scene.service.valkey(self._password)
            client.config_set("requirepass", "")
            self._password = ""


class FlushedValkey(Fault):
    """All vectors are gone at once."""

    name = "valkey-flush"
    description = "Valkey loses all vectors (FLUSHALL)"
    duration_s = 0.0

    def inject(self, scene: Scene) -> None:
        """Deletes all keys."""
        scene.service.valkey().flushall()


FAULTS: list[Fault] = [
    SlowValkey(),
    ConfiguredValkey(
        "valkey-full",
        "Valkey refuses writes for lack of memory",
        {"maxmemory-policy": "noeviction", "maxmemory": "1"},
    ),
    ConfiguredValkey(
        "valkey-read-only",
        "Valkey refuses writes for lack of replicas",
        {"min-replicas-to-write": "1"},
    ),
    LockedValkey(),
    FlushedValkey(),
]
