"""Every error the service raises on purpose, each with its HTTP status and a stable code.

The tree:

* EmbedServeError
  x ClientError
    + InvalidRequest          400   malformed or not servable; retrying unchanged can't help
      - EmptyInput            400
      - TextTooLong           400
      - UnsupportedOperation  400
      - InvalidJSON           400
    + Unauthorized            401
    + Forbidden               403
    + ModelNotFound           404
    + RouteNotFound           404
    + MethodNotAllowed        405
    + BodyTimeout             408
    + BodyTooLarge            413
    + UnsupportedMediaType    415
    + Overloaded              429   the queue is full; carries `retry_after_s`
      - QuotaExceeded         429   the API key has reached a limit
  x ServerError
    + InferenceError          500   the model ran and returned no usable vector
    + Unavailable             503   no replica can answer
    + DeadlineExceeded        504   no answer within the time limit
    + ConfigurationError      500   the service can't start with this configuration
      - ModelSourceError
      - SpaceMismatch
      - ParityFailed

Errors cross process boundaries by pickle, so every constructor takes positional arguments
and hands all of them to `Exception.__init__`. Messages reach the client: they say what is
wrong and how to mend it, and never hold a path or a secret of the server.
"""

from collections.abc import Mapping
from http import HTTPStatus
from reprlib import Repr
from typing import Any, Final

_NO_HEADERS: Final[Mapping[str, str]] = {}
_REPR: Final = Repr()
_REPR.maxstring = _REPR.maxother = 100


def short_repr(value: Any) -> str:
    """What a client sent, for a message: neither long, nor deeper than Python can show."""
    return _REPR.repr(value)


class EmbedServeError(Exception):
    """Base of every error raised on purpose."""

    status: HTTPStatus = HTTPStatus.INTERNAL_SERVER_ERROR
    code: str = "internal_error"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message, param)
        self.message = message
        #: The field of the job the error is about (`texts`, `dimensions`, …), if there is one.
        self.param = param

    def __str__(self) -> str:
        return self.message


class ClientError(EmbedServeError):
    """Base of the errors that the client can mend: status 4xx."""

    status = HTTPStatus.BAD_REQUEST


class ServerError(EmbedServeError):
    """Base of the errors that the client can't mend: status 5xx."""


class InvalidRequest(ClientError):
    """The request can't be answered as it stands; trying again unchanged won't help."""

    code = "invalid_value"


class EmptyInput(InvalidRequest):
    """There is no text, or a text has no character."""


class TextTooLong(InvalidRequest):
    """A text is longer than the model takes, and the client asked not to cut it."""

    code = "text_too_long"


class UnsupportedOperation(InvalidRequest):
    """The model is of another kind than what is asked of it."""

    code = "not_able_to"


class InvalidJSON(InvalidRequest):
    """The body isn't JSON."""


class Unauthorized(ClientError):
    """No API key came along, or one that isn't known."""

    status = HTTPStatus.UNAUTHORIZED
    code = "invalid_api_key"


class Forbidden(ClientError):
    """The API key may not use the model."""

    status = HTTPStatus.FORBIDDEN
    code = "model_not_allowed"


class ModelNotFound(ClientError):
    """The named model isn't served here."""

    status = HTTPStatus.NOT_FOUND
    code = "model_not_found"


class RouteNotFound(ClientError):
    """Nothing is served under the path."""

    status = HTTPStatus.NOT_FOUND
    code = "unknown_url"


class MethodNotAllowed(ClientError):
    """The path exists, the method doesn't."""

    status = HTTPStatus.METHOD_NOT_ALLOWED
    code = "method_not_allowed"


class BodyTimeout(ClientError):
    """The client did not finish sending its body in time."""

    status = HTTPStatus.REQUEST_TIMEOUT
    code = "body_timeout"


class BodyTooLarge(ClientError):
    """The body is over the configured limit."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    code = "body_too_large"


class UnsupportedMediaType(ClientError):
    """The body isn't declared as JSON."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    code = "unsupported_media_type"


class Overloaded(ClientError):
    """More work than fits; nothing of the request was taken on."""

    status = HTTPStatus.TOO_MANY_REQUESTS
    code = "rate_limit_exceeded"

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        EmbedServeError.__init__(self, message)
        self.args = (message, retry_after_s)
        self.retry_after_s = retry_after_s


class QuotaExceeded(Overloaded):
    """More than the client's API key may ask for now; nothing of the request was taken on."""

    def __init__(
        self, message: str, retry_after_s: int = 1, headers: Mapping[str, str] = _NO_HEADERS
    ) -> None:
        Overloaded.__init__(self, message, retry_after_s)
        self.args = (message, retry_after_s, headers)
        #: How the key stands, for the reply.
        self.headers = headers


class InferenceError(ServerError):
    """The model ran and did not give a usable vector."""

    code = "engine_failed"


class Unavailable(ServerError):
    """No replica can answer now; another try may succeed."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "unavailable"


class DeadlineExceeded(ServerError):
    """The answer did not come inside the request's time limit."""

    status = HTTPStatus.GATEWAY_TIMEOUT
    code = "deadline_exceeded"


class ConfigurationError(ServerError):
    """The service can't start as it is configured."""

    code = "configuration_error"


class ModelSourceError(ConfigurationError):
    """The model's files are missing, incomplete, or not the ones that were asked for."""


class SpaceMismatch(ConfigurationError):
    """This replica would compute vectors of another space than the application promised."""


class ParityFailed(ConfigurationError):
    """The engine's vectors are too far from those of sentence-transformers to be served."""
