"""A call that a provider refused → the error of the service."""

import math
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from http import HTTPStatus

from serve_app.errors import EmbedServeError, InvalidRequest, Overloaded, Unavailable, UpstreamError

#: Statuses by which a provider refuses the texts, not the service.
_REFUSED_TEXTS = {
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNPROCESSABLE_ENTITY,
}
#: Statuses below 500 that say nothing about the next attempt.
_TEMPORARY = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.TOO_EARLY}
#: What OpenAI calls an account without credit, with the status of a rate limit.
_NO_CREDIT = "insufficient_quota"
_MAX_MESSAGE = 300


class FailedCall(Exception):
    """A provider answered with a status other than 2xx."""

    def __init__(self, status: int, headers: Mapping[str, str], body: object) -> None:
        super().__init__(status)
        self.status = status
        self.headers = headers
        self.body = body  #: decoded JSON, if it was JSON

    def error(self, provider: str, redact: Callable[[str], str]) -> EmbedServeError:
        """Returns the error of the service.

        Args:
            provider: its name, for the message.
            redact: removes the API key from what the provider says.
        """
        status = self.status
        if status in _REFUSED_TEXTS:
            message = redact(_message(self.body))[:_MAX_MESSAGE]
            said = f": {message}" if message else "."
            return InvalidRequest(f"The provider {provider} refused the texts{said}", "texts")
        wait_s = retry_after_s(self.headers, time.time())
        if status == HTTPStatus.TOO_MANY_REQUESTS and not self._is_without_credit():
            return Overloaded(
                f"The rate limit of the provider {provider} is reached.", math.ceil(wait_s or 0)
            )
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _TEMPORARY:
            return Unavailable(
                f"The provider {provider} failed with status {status}.",
                None if wait_s is None else math.ceil(wait_s),
            )
        return UpstreamError(f"The provider {provider} refused the service: {_fix(status)}")

    def _is_without_credit(self) -> bool:
        body = self.body if isinstance(self.body, dict) else {}
        return _NO_CREDIT in (body.get("code"), body.get("type"))


def retry_after_s(headers: Mapping[str, str], now_s: float) -> float | None:
    """Returns how long a provider asks to wait, in seconds; None: it doesn't say, or nonsense.

    Args:
        headers: of its reply; `Retry-After` has seconds or a date, `retry-after-ms` milliseconds.
        now_s: Unix time.
    """
    values = {name.lower(): value for name, value in headers.items()}
    try:
        if milliseconds := values.get("retry-after-ms"):
            return _wait_s(float(milliseconds) / 1000)
    except ValueError:
        pass
    value = values.get("retry-after", "")
    try:
        return _wait_s(float(value))
    except ValueError:
        pass
    try:
        return _wait_s(max(0.0, parsedate_to_datetime(value).timestamp() - now_s))
    except (ValueError, OverflowError):
        return None


def _wait_s(seconds: float) -> float | None:
    return seconds if 0 <= seconds < math.inf else None


def _message(body: object, depth: int = 3) -> str:
    """Returns what the body of an error says, in one of the formats of the providers."""
    if isinstance(body, str):
        return " ".join(body.split())
    if isinstance(body, list):
        body = body[0] if body else None  # the first of several faults
    if isinstance(body, dict) and depth:
        for name in ("message", "detail", "error", "msg"):
            if text := _message(body.get(name), depth - 1):
                return text
    return ""


def _fix(status: int) -> str:
    if status == HTTPStatus.UNAUTHORIZED:
        return "its API key is not valid. Replace the key."
    if status == HTTPStatus.FORBIDDEN:
        return "its API key may not use the model. Allow it, or replace the key."
    if status == HTTPStatus.NOT_FOUND:
        return "it has no such model or address. Check `source` and `provider.base_url`."
    if status in (HTTPStatus.PAYMENT_REQUIRED, HTTPStatus.TOO_MANY_REQUESTS):
        return "the account has no credit left."
    return f"status {status}."
