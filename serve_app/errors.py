"""The exceptions of the service, each with its HTTP status and a stable error code.

The tree:

* EmbedServeError
  x ClientError
    + InvalidRequest          400   malformed or not servable; a retry fails as well
      - EmptyInput            400
      - TextTooLong           400
      - UnsupportedOperation  400
      - ImageFetchError       400
      - InvalidJSON           400
    + Unauthorized            401
      - UnknownKey            401
    + Forbidden               403
    + ModelNotFound           404
    + SpaceConflict           409   the request requires vectors of another space
    + RouteNotFound           404
    + MethodNotAllowed        405
    + BodyTimeout             408
    + HeaderTimeout           408
    + BodyTooLarge            413
    + HeaderTooLarge          431
    + UnsupportedMediaType    415
      - UnsupportedContentEncoding 415
    + Overloaded              429   the queue is full; `retry_after_s` says when to retry
      - QuotaExceeded         429   the API key has reached a limit
        = BudgetExceeded      429   the API key has used up its budget
  x ServerError
    + InferenceError          500   the model returned no usable vector
    + UpstreamError           502   the provider of the model failed or refused the service
    + Unavailable             503   no replica is available
    + DeadlineExceeded        504   the request exceeded its time limit
    + ConfigurationError      500   the service can't start with this configuration
      - ModelSourceError
      - SpaceMismatch
      - ParityFailed

Errors are pickled between processes, so every constructor takes positional arguments and passes
all of them to `Exception.__init__`. Messages reach the client: they name the fault and its fix, and
never contain a path or a secret of the server. The first line of each docstring describes the
status in `/openapi.json`.
"""

from collections.abc import Mapping
from http import HTTPStatus
from reprlib import Repr
from typing import Any, Final

_NO_HEADERS: Final[Mapping[str, str]] = {}
_REPR: Final = Repr()
_REPR.maxstring = _REPR.maxother = 100


def short_repr(value: Any) -> str:
    """Returns `repr(value)` for an error message, limited in length and in nesting depth."""
    return _REPR.repr(value)


class EmbedServeError(Exception):
    """Base class of the service's exceptions."""

    status: HTTPStatus = HTTPStatus.INTERNAL_SERVER_ERROR
    code: str = "internal_error"
    allows_fallback: bool = False  #: whether another engine or model may succeed

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message, param)
        self.message = message
        #: The invalid field of the job (`texts`, `dimensions`, …); None: no particular one.
        self.param = param

    def __str__(self) -> str:
        return self.message


class ClientError(EmbedServeError):
    """Base class of errors that the client can fix: status 4xx."""

    status = HTTPStatus.BAD_REQUEST


class ServerError(EmbedServeError):
    """Base class of errors that the client can't fix: status 5xx."""


class InvalidRequest(ClientError):
    """The request is invalid. Change it before you retry."""

    code = "invalid_value"


class EmptyInput(InvalidRequest):
    """The list of texts is empty, or one of the texts is."""


class TextTooLong(InvalidRequest):
    """A text exceeds the token limit, and the request doesn't allow truncation."""

    code = "text_too_long"


class UnsupportedOperation(InvalidRequest):
    """The model doesn't support the operation."""

    code = "not_able_to"


class ImageFetchError(InvalidRequest):
    """An image can't be fetched from its URL."""

    code = "image_not_fetched"


class InvalidJSON(InvalidRequest):
    """The request body isn't valid JSON in UTF-8, or its content coding is broken."""


class Unauthorized(ClientError):
    """The API key is missing or unknown."""

    status = HTTPStatus.UNAUTHORIZED
    code = "invalid_api_key"
    challenge = "Bearer"  #: the header `WWW-Authenticate` of the response


class UnknownKey(Unauthorized):
    """The API key is unknown."""

    challenge = 'Bearer error="invalid_token"'


class Forbidden(ClientError):
    """The API key has no access to the model."""

    status = HTTPStatus.FORBIDDEN
    code = "model_not_allowed"


class ModelNotFound(ClientError):
    """The model isn't served."""

    status = HTTPStatus.NOT_FOUND
    code = "model_not_found"


class SpaceConflict(ClientError):
    """The request requires vectors of another space than that of the model."""

    status = HTTPStatus.CONFLICT
    code = "embedding_space_conflict"


class RouteNotFound(ClientError):
    """The path doesn't exist."""

    status = HTTPStatus.NOT_FOUND
    code = "unknown_url"


class MethodNotAllowed(ClientError):
    """The path doesn't support the HTTP method."""

    status = HTTPStatus.METHOD_NOT_ALLOWED
    code = "method_not_allowed"


class BodyTimeout(ClientError):
    """The request body didn't arrive within the time limit."""

    status = HTTPStatus.REQUEST_TIMEOUT
    code = "body_timeout"


class HeaderTimeout(ClientError):
    """The header of the request didn't arrive within the time limit."""

    status = HTTPStatus.REQUEST_TIMEOUT
    code = "request_timeout"


class HeaderTooLarge(ClientError):
    """The header of the request exceeds the size limit."""

    status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
    code = "header_too_large"


class BodyTooLarge(ClientError):
    """The request body exceeds the size limit."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    code = "body_too_large"


class UnsupportedMediaType(ClientError):
    """The media type, charset or content coding of the request body isn't supported."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    code = "unsupported_media_type"


class UnsupportedContentEncoding(UnsupportedMediaType):
    """The content coding of the request body isn't supported."""


class Overloaded(ClientError):
    """The service is overloaded and has processed no part of the request. Retry later."""

    status = HTTPStatus.TOO_MANY_REQUESTS
    code = "rate_limit_exceeded"
    allows_fallback = True

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        EmbedServeError.__init__(self, message)
        self.args = (message, retry_after_s)
        self.retry_after_s = retry_after_s


class QuotaExceeded(Overloaded):
    """The API key has reached a limit; no part of the request was processed. Retry later."""

    allows_fallback = False

    def __init__(
        self, message: str, retry_after_s: int = 1, headers: Mapping[str, str] = _NO_HEADERS
    ) -> None:
        Overloaded.__init__(self, message, retry_after_s)
        self.args = (message, retry_after_s, headers)
        #: Response headers with the key's rate limits.
        self.headers = headers


class BudgetExceeded(QuotaExceeded):
    """The API key has used up its budget for this month. Models without a price still answer."""

    code = "insufficient_quota"


class InferenceError(ServerError):
    """The model failed to compute a usable vector."""

    code = "engine_failed"
    allows_fallback = True


class UpstreamError(ServerError):
    """The provider of the model refused the service, or its reply is invalid."""

    status = HTTPStatus.BAD_GATEWAY
    code = "upstream_failed"
    allows_fallback = True


class Unavailable(ServerError):
    """No replica is available. A retry may succeed."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "unavailable"
    allows_fallback = True

    def __init__(self, message: str, retry_after_s: int | None = None) -> None:
        EmbedServeError.__init__(self, message)
        self.args = (message, retry_after_s)
        self.retry_after_s = retry_after_s  #: None: nobody knows when


class DeadlineExceeded(ServerError):
    """The request exceeded its time limit."""

    status = HTTPStatus.GATEWAY_TIMEOUT
    code = "deadline_exceeded"


class ConfigurationError(ServerError):
    """The service can't start with this configuration."""

    code = "configuration_error"


class ModelSourceError(ConfigurationError):
    """The model's files are missing, incomplete, or differ from the configured checksum."""


class SpaceMismatch(ConfigurationError):
    """The replica's model defines another vector space than the application's."""


class ParityFailed(ConfigurationError):
    """The engine's vectors differ too much from those of sentence-transformers."""
