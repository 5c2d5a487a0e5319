"""Schemathesis: valid and invalid requests generated from the OpenAPI document."""

from typing import Any

import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import Case
from schemathesis.config import SchemathesisConfig
from schemathesis.core.transport import Response
from schemathesis.specs.openapi.checks import positive_data_acceptance

from serve_app.config import IngressSettings
from serve_app.service.catalog import Catalog
from serve_app.service.embed import EmbedService
from serve_app.web.app import create_app
from tests.fakes import FakeBackend
from tests.web.schema.conftest import CALIBRATED

_CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "negative_data_rejection",
    "positive_data_acceptance",
    "unsupported_method",
    "allow_header_conformance",
)
#: Statuses that may reject an invalid request.
_REJECTIONS = ["400", "404", "405", "409", "413", "415", "422", "424"]
_CONFIG = SchemathesisConfig.from_dict(
    {
        "seed": 1,
        "generation": {"max-examples": 15, "database": "none"},
        "checks": {
            "enabled": False,
            **{name: {"enabled": True} for name in _CHECKS},
            "negative_data_rejection": {"enabled": True, "expected-statuses": _REJECTIONS},
        },
    }
)
#: Low limits keep the generated bodies small.
_LIMITS = IngressSettings(max_texts_per_request=20, max_text_chars=200)
APP = create_app(Catalog([EmbedService(CALIBRATED, FakeBackend(), _LIMITS)]))
DOCUMENT = schemathesis.openapi.from_asgi("/openapi.json", APP, config=_CONFIG).exclude(
    path="/live"  # a stream that doesn't end by itself
)


def test_the_document_is_valid() -> None:
    DOCUMENT.validate()


@DOCUMENT.parametrize()
@settings(deadline=None, suppress_health_check=list(HealthCheck))
def test_responses_are_as_documented(case: Case[Any]) -> None:
    response = case.call()
    case.validate_response(
        response, excluded_checks=[positive_data_acceptance] if is_exempt(case, response) else []
    )


def is_exempt(case: Case[Any], response: Response) -> bool:
    """Whether a request may be rejected although its body is valid."""
    return (
        # No schema can bound the tokens of a text or a prompt.
        b"leave no room" in response.content
        or b"tokens that the model takes" in response.content
        # No schema can relate the numbers of texts in two fields.
        or b"one text, or as many as" in response.content
        # The limit applies to the texts of all instances together.
        or (case.path == "/vertex" and b"texts in one request" in response.content)
        # No schema can relate the shape of a tensor to its data.
        or b"`shape` of the tensor must be" in response.content
        # 8.0 is an integer in JSON Schema, and not in the parser.
        or holds_round_float(case.body)
    )


def holds_round_float(value: Any) -> bool:
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return any(map(holds_round_float, inner))
    return isinstance(value, float) and value.is_integer()
