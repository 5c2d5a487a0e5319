"""The API key of a provider, which appears in no message, no log and no `repr`."""

from pathlib import Path

from serve_app.config import ProviderSettings
from serve_app.config.secret import read_secret
from serve_app.errors import ConfigurationError


class ApiKey:
    """A key from an environment variable or a file."""

    def __init__(self, settings: ProviderSettings, default_env: str | None) -> None:
        """Reads the key.

        Args:
            settings: say where it is.
            default_env: the environment variable if the settings name none; None: no key then.

        Raises:
            ConfigurationError: there is no key, or it can't be sent in a header.
        """
        self._file = settings.api_key_file
        self._env = settings.api_key_env or default_env
        self._value = self._read()
        self._former: set[str] = set()  # calls in flight may still use them

    @property
    def value(self) -> str:
        """The key; empty without one."""
        return self._value

    def reload(self) -> bool:
        """Reads the key again. Returns whether it has changed; a missing key leaves the old one."""
        old = self._value
        try:
            self._value = self._read()
        except ConfigurationError:
            return False
        self._former.add(old)
        return self._value != old

    def redact(self, text: str) -> str:
        """Returns a text in which `***` replaces the key and those before it."""
        for key in filter(None, {self._value, *self._former}):
            text = text.replace(key, "***")
        return text

    def _read(self) -> str:
        if self._file is not None:
            name, value = "the file of `provider.api_key_file`", _read_file(self._file)
        elif self._env is not None:
            name = f"the environment variable {self._env}"
            value = read_secret(self._env, "provider.api_key_env")
        else:
            return ""
        value = value.strip()
        # HTTP libraries quote a header that they can't send in their errors.
        if not value or not all("!" <= character <= "~" for character in value):
            raise ConfigurationError(
                f"Put an API key into {name}: it is empty, or has spaces or other characters that "
                "no header can hold."
            )
        return value


def _read_file(path: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"Can't read the file of `provider.api_key_file` ({type(error).__name__}). Put the "
            "provider's API key there, readable for the service."
        ) from None
