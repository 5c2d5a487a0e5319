"""The exceptions that the client raises on purpose.

The tree, with the `code` of each class:

* EmbedError
  x NetworkError             NETWORK_ERROR         no connection, or the connection broke
  x RequestTimeoutError      TIMEOUT               the timeout of the call expired
  x HTTPError                HTTP_ERROR            an error response; `status`, `retry_after_s`
    + RateLimitError         RATE_LIMITED          429: overload or quota
    + SpaceConflictError     SPACE_CONFLICT        409: the service has another space than pinned
    + ServerError            SERVER_ERROR          5xx: the service failed or isn't ready
  x ParseError               PARSE_ERROR           a response without valid vectors
  x SpaceMismatchError       SPACE_MISMATCH        vectors of an incompatible embedding space
  x LocalModelError          LOCAL_MODEL_ERROR     the local model can't be loaded or used
  x InvalidURLError          INVALID_URL           the URL of the service is malformed
  x ServiceNotRunningError   SERVICE_NOT_RUNNING   the service can't be started or keeps failing
  x FileError                FILE_ERROR            an input or output file can't be read or written
  x DatabaseError            DATABASE_ERROR        a database can't be read or written
  x IndexMismatchError       INDEX_MISMATCH        arguments that don't fit the vector index

All of them can be pickled, so they cross process boundaries. None contains an API key.
"""

from typing import Any


class EmbedError(Exception):
    """Base class of all errors of the client."""

    #: A stable identifier for programs.
    code = "EMBED_ERROR"

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle, (type(self), self.args, self.__dict__)


def _unpickle(cls: type[EmbedError], args: tuple[Any, ...], state: dict[str, Any]) -> EmbedError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class NetworkError(EmbedError):
    """The service is unreachable, or the connection broke."""

    code = "NETWORK_ERROR"


class RequestTimeoutError(EmbedError):
    """The timeout of the call expired, retries included."""

    code = "TIMEOUT"


class HTTPError(EmbedError):
    """The service returned an error response."""

    code = "HTTP_ERROR"
    #: Seconds from `Retry-After` of a 429 or 503; None: the response had no such header.
    retry_after_s: float | None = None

    def __init__(
        self,
        message: str,
        status: int,
        *,
        server_code: str | None = None,
        param: str | None = None,
        request_id: str | None = None,
    ) -> None:
        """Creates the error.

        Args:
            message: the message in the response.
            status: the HTTP status code.
            server_code: the error code in the response.
            param: the request field that caused the error.
            request_id: identifies the request in the service's log.
        """
        super().__init__(message)
        self.status = status
        self.server_code = server_code
        self.param = param
        self.request_id = request_id

    def __str__(self) -> str:
        return f"{self.args[0]} (status {self.status})"


class RateLimitError(HTTPError):
    """429: overload, or a used-up quota. No part of the request was processed."""

    code = "RATE_LIMITED"


class ServerError(HTTPError):
    """5xx: the service failed or isn't ready."""

    code = "SERVER_ERROR"


class ParseError(EmbedError):
    """The response is truncated, has another shape, or holds no vectors."""

    code = "PARSE_ERROR"


class SpaceMismatchError(EmbedError):
    """Vectors belong to a space that can't be compared with the expected one."""

    code = "SPACE_MISMATCH"


class SpaceConflictError(HTTPError, SpaceMismatchError):
    """409: the model's vectors can't be compared with the space that the client pins.

    The service computed nothing.
    """

    code = "SPACE_CONFLICT"


class LocalModelError(EmbedError):
    """The local model can't be loaded, or doesn't support an option."""

    code = "LOCAL_MODEL_ERROR"


class InvalidURLError(EmbedError, ValueError):
    """The URL of the service is malformed."""

    code = "INVALID_URL"


class ServiceNotRunningError(EmbedError):
    """The service can't be started or keeps failing; the message says why."""

    code = "SERVICE_NOT_RUNNING"


class FileError(EmbedError):
    """A file of texts, of vectors, or of an index can't be read or written."""

    code = "FILE_ERROR"


class DatabaseError(EmbedError):
    """A table of a database can't be read or written. The message quotes no row and no password."""

    code = "DATABASE_ERROR"


class IndexMismatchError(EmbedError):
    """Arguments don't fit a vector index: dimensions, space, or number of metadata values."""

    code = "INDEX_MISMATCH"
