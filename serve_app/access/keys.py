"""API keys: finding whose one is, and where the list of them comes from."""

import asyncio
import hashlib
import hmac
import json
import logging
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import yaml
from pydantic import Field, ValidationError

from serve_app.config import AccessSettings, ApiKey
from serve_app.config.secret import read_secret
from serve_app.config.section import Section
from serve_app.errors import ConfigurationError

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0
_PREFIX = "es-"
_KEY_BYTES = 32
#: Longer ones are nobody's, and aren't hashed.
MAX_KEY_CHARS = 512
#: Of a digest, to look it up by; what can be learnt from it tells nothing of a key.
_PLACE = 8


def generate_key() -> str:
    """A key that nobody has: `es-` and 43 characters, 256 random bits."""
    return _PREFIX + secrets.token_urlsafe(_KEY_BYTES)


def digest(key: str) -> str:
    """SHA-256 of a key, in 64 hexadecimal digits.

    A slow hash protects passwords, which can be guessed. Of 256 random bits none can, so a fast
    one is as safe, and each request can afford it.
    """
    return hashlib.sha256(key.encode()).hexdigest()


class _Unreadable(NamedTuple):
    """What stands for the content of a file that can't be read."""

    why: str


class _File(NamedTuple):
    content: str | _Unreadable  #: as it was read last
    keys: tuple[ApiKey, ...]  #: as they could be read last


_NO_FILE = _File("", ())


class KeyRing:
    """The keys that are known now, those of a file among them. For one event loop."""

    def __init__(self) -> None:
        self._settings = AccessSettings()
        self._file = _NO_FILE
        self._places: dict[str, list[ApiKey]] = {}
        self.is_limited = False  #: whether any of the keys has a limit

    @property
    def required(self) -> bool:
        """Whether requests need a key."""
        return self._settings.required

    def apply(self, settings: AccessSettings) -> None:
        """Takes new settings. Blocks while it reads the file, if there is one.

        Raises:
            ConfigurationError: the file, the variable or the list of keys can't be used; nothing
                has changed. A file that could be used before is taken as it was.
        """
        told, file = _told(settings), _NO_FILE
        places = _placed(told)
        if settings.keys_file is not None:
            content = _content(settings.keys_file)
            try:
                file, places = _joined(told, content)
            except ConfigurationError as error:
                if settings.keys_file != self._settings.keys_file:
                    raise
                file = self._kept(content, error)
                places = _placed((*told, *file.keys))
        self._settings, self._file = settings, file
        self._put(places)

    def find(self, presented: str) -> ApiKey | None:
        """Whose key it is; None: nobody's."""
        if len(presented) > MAX_KEY_CHARS or not presented.isascii():
            return None
        sha256 = digest(presented)
        for key in self._places.get(sha256[:_PLACE], ()):
            if hmac.compare_digest(key.sha256, sha256):
                return key
        return None

    async def watch(self) -> None:
        """Reads the file anew each second, for ever.

        Not its time of change, which is too coarse to tell two changes apart. On a thread: a file
        that hangs holds no request, and an idle service forgets a key in time too.
        """
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            settings = self._settings
            if settings.keys_file is None:
                continue
            content = await asyncio.to_thread(_content, settings.keys_file)
            if settings is self._settings and content != self._file.content:
                self._take(content)

    def _take(self, content: str | _Unreadable) -> None:
        try:
            self._file, places = _joined(_told(self._settings), content)
        except ConfigurationError as error:
            self._file = self._kept(content, error)
            return
        self._put(places)
        logger.info("The file of API keys has changed: it lists %d.", len(self._file.keys))

    def _kept(self, content: str | _Unreadable, error: ConfigurationError) -> _File:
        """The keys that the file listed before, as now it can't be used."""
        if content != self._file.content:
            logger.error("%s The keys that it listed before stay valid.", error)
        return self._file._replace(content=content)

    def _put(self, places: dict[str, list[ApiKey]]) -> None:
        self._places = places
        self.is_limited = any(key.is_limited for keys in places.values() for key in keys)


class _Keys(Section):
    keys: tuple[ApiKey, ...] = Field(description="As `access.keys`.")


def _content(file: str) -> str | _Unreadable:
    try:
        return Path(file).read_text(encoding="utf-8")
    except OSError as error:
        return _Unreadable(error.strerror or type(error).__name__)
    except UnicodeDecodeError:
        return _Unreadable("it isn't UTF-8")


def _told(settings: AccessSettings) -> tuple[ApiKey, ...]:
    """Keys that the settings themselves list, or an environment variable."""
    if settings.keys_env is None:
        return settings.keys
    listed = read_secret(settings.keys_env, "access.keys_env")
    return (*settings.keys, *_parsed(listed, "The variable of `access.keys_env`"))


def _joined(
    told: Sequence[ApiKey], content: str | _Unreadable
) -> tuple[_File, dict[str, list[ApiKey]]]:
    """The file's keys, and where they and those of the settings are looked up."""
    file = _File(content, _parsed(content, "The file of `access.keys_file`"))
    return file, _placed((*told, *file.keys))


def _parsed(content: str | _Unreadable, what: str) -> tuple[ApiKey, ...]:
    """The keys in a text of YAML or JSON. Errors hold nothing of it: it may be a key itself."""
    if isinstance(content, _Unreadable):
        raise ConfigurationError(f"{what} can't be read: {content.why}.")
    try:
        return _Keys.model_validate(_loaded(content)).keys
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = "" if mark is None else f", see line {mark.line + 1}"
        raise ConfigurationError(f"{what} is neither YAML nor JSON{place}.") from None
    except ValidationError as error:
        raise ConfigurationError(
            f"{what} must be a list of keys under `keys`, as `embedserve key new` prints them: "
            f"{describe_invalid_keys(error)}."
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError):  # a date that is none is a ValueError
        raise ConfigurationError(f"{what} is neither YAML nor JSON.") from None


def _loaded(content: str) -> object:
    try:
        return json.loads(content)  # which may be indented with tabs, and YAML may not
    except (ValueError, RecursionError):
        return yaml.safe_load(content)


def describe_invalid_keys(error: ValidationError) -> str:
    """What is wrong with keys, without anything that was given, the names of fields included."""
    known = {"keys", *ApiKey.model_fields}
    return "; ".join(
        ".".join(str(part) if part in known or isinstance(part, int) else "?" for part in e["loc"])
        + f": {e['msg']}"
        for e in error.errors(include_input=False, include_context=False, include_url=False)
    )


def _placed(keys: Sequence[ApiKey]) -> dict[str, list[ApiKey]]:
    """The keys by where they are looked up.

    Raises:
        ConfigurationError: two have one name, or are one key.
    """
    places: dict[str, list[ApiKey]] = {}
    names: dict[str, ApiKey] = {}
    digests: dict[str, ApiKey] = {}
    for key in keys:
        if key.name in names:
            raise ConfigurationError(f"Two API keys have the name {key.name!r}.")
        same = digests.setdefault(key.sha256, key)
        if same is not key:
            raise ConfigurationError(
                f"The API keys {same.name!r} and {key.name!r} are one: each needs its own."
            )
        names[key.name] = key
        places.setdefault(key.sha256[:_PLACE], []).append(key)
    return places
