"""Azure OpenAI: OpenAI's format below `/openai/deployments/{deployment}`.

The deployment in the path replaces the field `model`; the query parameter `api-version` is ignored.
"""

from dataclasses import replace
from typing import TypedDict

import orjson

from serve_app.errors import EmbedServeError, InvalidRequest, ModelNotFound
from serve_app.web.dialect import Dialect, ErrorResponse
from serve_app.web.dialects import openai
from serve_app.web.schema.typed_dict import schema_of


class ErrorEnvelope(TypedDict):
    """The fields of an error: OpenAI's, with codes of Azure's gateway."""

    code: str | None
    message: str
    type: str
    param: str | None


class ErrorReply(TypedDict):
    """The body of an error."""

    error: ErrorEnvelope


def render_error(error: EmbedServeError) -> ErrorResponse:
    """Returns the error in Azure's envelope.

    `code` is OpenAI's for an error in the body. Azure's gateway returns the others: their `code` is
    `DeploymentNotFound` or the status.
    """
    response = openai.render_error(error)
    fields: openai.ErrorEnvelope = orjson.loads(response.body)["error"]
    code: str | None = str(int(response.status))
    if isinstance(error, ModelNotFound):
        code = "DeploymentNotFound"
    elif isinstance(error, InvalidRequest):
        code = fields["code"]
    body: ErrorReply = {
        "error": {
            "code": code,
            "message": fields["message"],
            "type": fields["type"],
            "param": fields["param"],
        }
    }
    return response._replace(body=orjson.dumps(body))


DIALECT = Dialect(
    name="Azure OpenAI",
    order=120,
    render_error=render_error,
    error_schema=schema_of(ErrorReply),
    endpoints=tuple(
        replace(
            endpoint,
            path="/openai/deployments/{model:path}/embeddings",
            summary="Embed texts with the deployment of this name.",
        )
        for endpoint in openai.DIALECT.endpoints
    ),
)
