"""`BatchCostSettings`: how long the batches of a model without weights take."""

from pydantic import Field

from serve_app.config.section import Section


class BatchCostSettings(Section):
    """A minimum duration of batches, for tests and trials."""

    fixed_s: float = Field(
        default=0.0,
        ge=0,
        le=60,
        allow_inf_nan=False,
        description="Minimum duration of each batch of a `hashing:` model, in seconds: to try "
        "autoscaling and routing without a model. The engine sleeps for the rest of the time, so "
        "several replicas fit on one core. The vectors don't change.",
    )
    token_s: float = Field(
        default=0.0,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Additional minimum duration for each token of the batch, padding included: "
        "the number of texts times the words of the longest.",
    )
