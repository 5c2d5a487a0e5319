"""Every error that the client raises on purpose.

The tree:

* EmbedError
  x NetworkError         NETWORK_ERROR       nobody answered, or the connection broke
  x Timeout              TIMEOUT             the call's time ran out
  x HTTPError            HTTP_ERROR          the service refused; has `status` and its own words
    + Overloaded         OVERLOADED          429: too much to do; has `retry_after_s`
    + ServerError        SERVER_ERROR        5xx: the service failed
  x ParseError           PARSE_ERROR         the answer isn't what was asked for
  x SpaceMismatch        SPACE_MISMATCH      vectors that can't be compared with those before
  x LocalModelError      LOCAL_MODEL_ERROR   the model in this process can't be used
  x BadAddress           BAD_ADDRESS         what was given isn't the address of a service
  x NotRunning           NOT_RUNNING         the service could not be started, or doesn't stay up
  x FileError            FILE_ERROR          a file of texts or vectors can't be read or written
  x IndexMismatch        INDEX_MISMATCH      an index and what is asked of it don't belong together

All of them survive pickle, so that they cross processes, and none shows an API key.
"""

from typing import Any


class EmbedError(Exception):
    """Base of them all."""

    #: A stable word for programs.
    code = "EMBED_ERROR"

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), self.args, self.__dict__)


def _again(kind: type[EmbedError], args: tuple[Any, ...], state: dict[str, Any]) -> EmbedError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class NetworkError(EmbedError):
    """Nobody answered, or the connection broke."""

    code = "NETWORK_ERROR"


class Timeout(EmbedError):
    """The call's time ran out, retries included."""

    code = "TIMEOUT"


class HTTPError(EmbedError):
    """The service answered with an error."""

    code = "HTTP_ERROR"

    def __init__(
        self,
        message: str,
        status: int,
        *,
        server_code: str | None = None,
        param: str | None = None,
        request_id: str | None = None,
    ) -> None:
        """The service's answer.

        Args:
            message: the service's own words.
            status: of HTTP.
            server_code: the service's stable word for it.
            param: the field that it is about.
            request_id: by which the service's log knows the request.
        """
        super().__init__(message)
        self.status = status
        self.server_code = server_code
        self.param = param
        self.request_id = request_id

    def __str__(self) -> str:
        return f"{self.args[0]} (status {self.status})"


class Overloaded(HTTPError):
    """429: nothing of the request was taken on."""

    code = "OVERLOADED"
    #: Seconds after which the service asks to be tried again; None: it didn't say.
    retry_after_s: float | None = None


class ServerError(HTTPError):
    """5xx: the service failed, or isn't ready."""

    code = "SERVER_ERROR"


class ParseError(EmbedError):
    """The answer isn't what was asked for: cut short, of another shape, or no vectors at all."""

    code = "PARSE_ERROR"


class SpaceMismatch(EmbedError):
    """Vectors of two spaces that can't be compared would have met."""

    code = "SPACE_MISMATCH"


class LocalModelError(EmbedError):
    """The model in this process can't be had, or can't do what is asked."""

    code = "LOCAL_MODEL_ERROR"


class BadAddress(EmbedError, ValueError):
    """What was given isn't the address of a service."""

    code = "BAD_ADDRESS"


class NotRunning(EmbedError):
    """The service could not be started, or doesn't stay up; the message says why."""

    code = "NOT_RUNNING"


class FileError(EmbedError):
    """A file of texts or of vectors can't be read or written."""

    code = "FILE_ERROR"


class IndexMismatch(EmbedError):
    """An index and what is asked of it don't belong together."""

    code = "INDEX_MISMATCH"
