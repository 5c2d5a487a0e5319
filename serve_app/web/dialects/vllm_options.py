"""Options of vLLM's requests for scores and classes."""

from serve_app.models import ModelSpec
from serve_app.types import Lane
from serve_app.web.schema.fields import Body, BoolField, EnumField, Field, IntField, StringField
from serve_app.web.schema.token_limit import TokenLimitField

PRIORITY = IntField("priority", "Values above 0 put the request into the bulk lane.")
USE_ACTIVATION = BoolField(
    "use_activation", "If false, scores are the model's logits, instead of values from 0 to 1."
)
_TRUNCATION_SIDE = EnumField(
    "truncation_side",
    "The end at which texts over the token limit are truncated: always the right one.",
    choices=("right",),
)
_TOKEN_LIMIT = TokenLimitField(
    "truncate_prompt_tokens",
    "Token limit of a text or a pair; at least the model's own limit, which -1 stands for.",
    minimum=-1,
)
_USER = StringField("user", "Accepted for compatibility and ignored.")
FIELDS: tuple[Field, ...] = (USE_ACTIVATION, _TRUNCATION_SIDE, _TOKEN_LIMIT, PRIORITY, _USER)


def lane(body: Body) -> Lane | None:
    """Returns the lane of a request; None: chosen by the number of texts."""
    return "bulk" if (PRIORITY(body) or 0) > 0 else None


def check(body: Body, spec: ModelSpec) -> None:
    """Checks the options that have no effect.

    Raises:
        InvalidRequest: a value would change the scores, or has a wrong type.
    """
    _USER(body)
    _TRUNCATION_SIDE(body)
    _TOKEN_LIMIT.check(body, spec)
