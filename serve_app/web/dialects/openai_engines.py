"""OpenAI's former path, with the model in it: `POST /v1/engines/{model}/embeddings`."""

from dataclasses import replace

from serve_app.web.dialect import Dialect
from serve_app.web.dialects import openai

DIALECT = Dialect(
    name="OpenAI engines",
    order=130,
    render_error=openai.render_error,
    error_schema=openai.ERROR_SCHEMA,
    endpoints=tuple(
        replace(
            endpoint,
            path="/v1/engines/{model:path}/embeddings",
            summary="Embed texts with the model of this name.",
        )
        for endpoint in openai.DIALECT.endpoints
    ),
)
