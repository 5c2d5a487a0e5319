"""`GET /shadow`: how the second models of aliases compare with those that answer."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Annotated, Any, TypedDict

import orjson

from serve_app.cost import format_usd, token_cost
from serve_app.live.shadow_sample import ModelUsage, ShadowSample, merge
from serve_app.models import ModelSpec
from serve_app.service.catalog import Catalog
from serve_app.web.dialect import Dialect
from serve_app.web.dialects import openai
from serve_app.web.endpoint import ViewResponse, ViewRoute
from serve_app.web.schema.json_schema import INTEGER, Schema
from serve_app.web.schema.typed_dict import schema_of

_COUNTS: Schema = {"type": "object", "additionalProperties": INTEGER}


class ShadowModel(TypedDict):
    """What one of both models took for the texts that were compared."""

    model: str
    space: str
    texts: int
    tokens: int  # of these texts, as the model counts them
    computed_tokens: int  # those that were not cached; of the first model with other texts of the
    computed_s: float  # same requests. Seconds of the batches that they were in
    tokens_per_s: float | None  # null: nothing was computed
    usd_per_1k_tokens: str
    cost_usd: str  # of `tokens`, without a cache


class ShadowReport(TypedDict):
    """How two models compare on the same texts, over all replicas."""

    alias: str
    share: float
    replicas: int
    outcomes: Annotated[Mapping[str, int], _COUNTS]  # `compared`, or why texts were dropped
    answers: ShadowModel  # the model that answers
    shadow: ShadowModel  # the model that is compared with it
    sample_texts: int  # whose vectors are compared
    kept: float | None  # share of the 10 nearest neighbours that are the same; null: too few texts
    kept_first: float | None  # share of the texts whose nearest neighbour is the same
    rank_correlation: float | None  # Spearman's, of the similarities of pairs of texts
    cosine: float | None  # null: not asked for


class ShadowReply(TypedDict):
    """The reply of `GET /shadow`."""

    shadows: list[ShadowReport]


async def _shadows(catalog: Catalog, arguments: Mapping[str, Any]) -> ViewResponse:
    """Returns a report for each alias with a shadow; empty where there is none."""
    reports: list[ShadowReport] = []
    shadows = [alias.shadow for alias in catalog.aliases if alias.shadow is not None]
    if shadows:
        fleet = await catalog.replica_stats.sample()
        samples = defaultdict[tuple[str, str, str], list[ShadowSample]](list)
        for sample in (sample for replica in fleet.replicas for sample in replica.shadows):
            samples[sample.alias, sample.model, sample.shadow].append(sample)
        for shadow in shadows:
            own = shadow.sample()
            # During a roll-out, replicas with other models have samples of their own.
            same = samples[own.alias, own.model, own.shadow] or [own]
            specs = shadow.primary.spec, shadow.second.spec
            reports.append(_report(merge(same), len(same), shadow.settings.share, *specs))
    reply: ShadowReply = {"shadows": reports}
    return ViewResponse(orjson.dumps(reply))


def _report(
    sample: ShadowSample, replicas: int, share: float, first: ModelSpec, second: ModelSpec
) -> ShadowReport:
    found = sample.agreement
    return {
        "alias": sample.alias,
        "share": share,
        "replicas": replicas,
        "outcomes": sample.outcomes,
        "answers": _model(first, sample.primary),
        "shadow": _model(second, sample.second),
        "sample_texts": 0 if found is None else found.texts,
        "kept": found and found.kept,
        "kept_first": found and found.kept_first,
        "rank_correlation": found and found.rank_correlation,
        "cosine": found and found.cosine,
    }


def _model(spec: ModelSpec, usage: ModelUsage) -> ShadowModel:
    price = spec.nano_usd_per_1k_tokens
    return {
        "model": spec.name,
        "space": spec.space_id,
        "texts": usage.texts,
        "tokens": usage.tokens,
        "computed_tokens": usage.computed_tokens,
        "computed_s": usage.computed_s,
        "tokens_per_s": usage.tokens_per_s,
        "usd_per_1k_tokens": format_usd(price),
        "cost_usd": format_usd(token_cost(usage.tokens, price)),
    }


DIALECT = Dialect(
    name="shadow",
    order=87,
    render_error=openai.render_error,
    error_schema=openai.ERROR_SCHEMA,
    views=(
        ViewRoute(
            path="/shadow",
            summary="How the second models of aliases compare with those that answer.",
            respond=_shadows,
            reply_schema=schema_of(ShadowReply),
        ),
    ),
)
