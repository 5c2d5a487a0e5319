"""API keys: generates, loads and finds them. Only their digests are stored.

settings, environment variable, file → `ApiKey` entries → index by digest → `find`
"""

import asyncio
import hashlib
import hmac
import json
import logging
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml
from pydantic import Field, ValidationError

from serve_app.config import AccessSettings, ApiKey
from serve_app.config.secret import read_secret
from serve_app.config.section import Section, describe_errors
from serve_app.errors import ConfigurationError

logger = logging.getLogger(__name__)

_PREFIX = "es-"
_RANDOM_BYTES = 32
#: Longer keys are unknown without being hashed.
MAX_KEY_CHARS = 512
#: Leading characters of a digest that index it. Their lookup isn't constant-time, which reveals
#: nothing about a key.
_INDEX_CHARS = 8

KeyIndex = Mapping[str, Sequence[ApiKey]]


def generate_key() -> str:
    """Returns a new random key: `es-` and 43 characters, 256 random bits."""
    return _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def digest(key: str) -> str:
    """Returns the SHA-256 of a key as 64 hexadecimal digits.

    A slow hash protects passwords, which can be guessed. A key has 256 random bits, so a fast hash
    is as safe, and cheap enough for every request.
    """
    return hashlib.sha256(key.encode()).hexdigest()


class _ReadError(NamedTuple):
    """Takes the place of the content of a file that can't be read."""

    reason: str


class _KeysFile(NamedTuple):
    content: str | _ReadError  #: as last read
    keys: tuple[ApiKey, ...]  #: of the last valid content


_NO_FILE = _KeysFile("", ())


class KeyRing:
    """The known keys of the settings and of a file that is watched. For one event loop."""

    def __init__(self, poll_every_s: float = 1.0) -> None:
        """A key ring without keys.

        Args:
            poll_every_s: interval at which `watch` reads the file.
        """
        self.poll_every_s = poll_every_s
        self.is_limited = False  #: whether any key has a limit
        self.with_budget: Sequence[str] = ()  #: names of the keys that have a budget
        self._settings = AccessSettings()
        self._file = _NO_FILE
        self._index: KeyIndex = {}

    @property
    def required(self) -> bool:
        """Whether requests need a key."""
        return self._settings.required

    @property
    def known(self) -> list[ApiKey]:
        """The entries of all keys."""
        return [key for keys in self._index.values() for key in keys]

    def apply(self, settings: AccessSettings) -> None:
        """Applies new settings. Blocks while it reads the file, if there is one.

        If the same file was valid before, its previous keys stay valid.

        Raises:
            ConfigurationError: the file, the variable or a key is invalid. The previous settings
                stay in effect.
        """
        keys, file = _settings_keys(settings), _NO_FILE
        index = _build_index(keys)
        if settings.keys_file is not None:
            content = _read(settings.keys_file)
            try:
                file, index = _merge(keys, content)
            except ConfigurationError as error:
                if settings.keys_file != self._settings.keys_file:
                    raise
                file = self._with_previous_keys(content, error)
                index = _build_index((*keys, *file.keys))
        self._settings, self._file = settings, file
        self._set_index(index)

    def find(self, presented: str) -> ApiKey | None:
        """Returns the entry of a presented key; None if it is unknown."""
        if len(presented) > MAX_KEY_CHARS or not presented.isascii():
            return None
        sha256 = digest(presented)
        for key in self._index.get(sha256[:_INDEX_CHARS], ()):
            if hmac.compare_digest(key.sha256, sha256):
                return key
        return None

    async def watch(self) -> None:
        """Polls the file and applies its changes, until cancelled.

        It compares contents, because modification times are too coarse to tell two changes apart.
        It reads on a thread, so that a file system that hangs delays no request.
        """
        while True:
            await asyncio.sleep(self.poll_every_s)
            settings = self._settings
            if settings.keys_file is None:
                continue
            content = await asyncio.to_thread(_read, settings.keys_file)
            if settings is self._settings and content != self._file.content:
                self._reload(content)

    def _reload(self, content: str | _ReadError) -> None:
        try:
            self._file, index = _merge(_settings_keys(self._settings), content)
        except ConfigurationError as error:
            self._file = self._with_previous_keys(content, error)
            return
        self._set_index(index)
        logger.info("The file of API keys has changed: it lists %d.", len(self._file.keys))

    def _with_previous_keys(
        self, content: str | _ReadError, error: ConfigurationError
    ) -> _KeysFile:
        if content != self._file.content:
            logger.error("%s The keys that it listed before stay valid.", error)
        return self._file._replace(content=content)

    def _set_index(self, index: KeyIndex) -> None:
        self._index = index
        keys = [key for keys in index.values() for key in keys]
        self.is_limited = any(key.is_limited for key in keys)
        self.with_budget = [key.name for key in keys if key.budget_nano_usd is not None]


class _KeyList(Section):
    keys: tuple[ApiKey, ...] = Field(description="See `access.keys`.")


def _read(file: str) -> str | _ReadError:
    try:
        return Path(file).read_text(encoding="utf-8")
    except OSError as error:
        return _ReadError(error.strerror or type(error).__name__)
    except UnicodeDecodeError:
        return _ReadError("it isn't UTF-8")


def _settings_keys(settings: AccessSettings) -> tuple[ApiKey, ...]:
    """Returns the keys of the settings and of the environment variable that they name."""
    if settings.keys_env is None:
        return settings.keys
    content = read_secret(settings.keys_env, "access.keys_env")
    return (*settings.keys, *_parse(content, "The variable of `access.keys_env`"))


def _merge(keys: Sequence[ApiKey], content: str | _ReadError) -> tuple[_KeysFile, KeyIndex]:
    """Returns the parsed file, and the index of `keys` and of the file's keys together."""
    file = _KeysFile(content, _parse(content, "The file of `access.keys_file`"))
    return file, _build_index((*keys, *file.keys))


def _parse(content: str | _ReadError, source: str) -> tuple[ApiKey, ...]:
    """Parses YAML or JSON. Errors don't quote the content, which may be a key."""
    if isinstance(content, _ReadError):
        raise ConfigurationError(f"{source} can't be read: {content.reason}.")
    try:
        return _KeyList.model_validate(_load(content)).keys
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = "" if mark is None else f", see line {mark.line + 1}"
        raise ConfigurationError(f"{source} is neither YAML nor JSON{line}.") from None
    except ValidationError as error:
        raise ConfigurationError(
            f"{source} must be a list of keys under `keys`, as `embedserve key new` prints them: "
            f"{describe_invalid_keys(error)}."
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError):  # an invalid date is a ValueError
        raise ConfigurationError(f"{source} is neither YAML nor JSON.") from None


def _load(content: str) -> object:
    try:
        return json.loads(content)  # JSON may be indented with tabs, which YAML doesn't allow
    except (ValueError, RecursionError):
        return yaml.safe_load(content)


def describe_invalid_keys(error: ValidationError) -> str:
    """Describes validation errors without quoting the input, not even unknown field names."""
    return describe_errors(error, known={"keys", *ApiKey.model_fields})


def _build_index(keys: Sequence[ApiKey]) -> KeyIndex:
    """Returns the keys by the first characters of their digests.

    Raises:
        ConfigurationError: two entries have the same name or the same key.
    """
    index: dict[str, list[ApiKey]] = {}
    names = set[str]()
    by_digest: dict[str, ApiKey] = {}
    for key in keys:
        if key.name in names:
            raise ConfigurationError(f"Two API keys have the name {key.name!r}.")
        same = by_digest.setdefault(key.sha256, key)
        if same is not key:
            raise ConfigurationError(
                f"The API keys {same.name!r} and {key.name!r} are identical: give each name a key "
                "of its own."
            )
        names.add(key.name)
        index.setdefault(key.sha256[:_INDEX_CHARS], []).append(key)
    return index
