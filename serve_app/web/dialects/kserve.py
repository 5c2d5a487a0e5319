"""KServe's paths of OpenAI's format: the routes of `openai` below `/openai`."""

from dataclasses import replace

from serve_app.web.dialect import Dialect
from serve_app.web.dialects import openai

_PREFIX = "/openai"

DIALECT = Dialect(
    name="KServe",
    order=110,
    render_error=openai.render_error,
    error_schema=openai.ERROR_SCHEMA,
    endpoints=tuple(
        replace(endpoint, path=_PREFIX + endpoint.path) for endpoint in openai.DIALECT.endpoints
    ),
    views=tuple(replace(view, path=_PREFIX + view.path) for view in openai.DIALECT.views),
)
