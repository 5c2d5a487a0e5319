"""The format of a desktop application's sidecar: `POST /embed` with `texts`, and `GET /info`.

`/info` serves TEI's clients too: its reply also has the fields of TEI's `/info`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, NotRequired, TypedDict, cast

import orjson

from serve_app.errors import EmbedServeError
from serve_app.jobs import EmbedJob
from serve_app.models import ModelSpec
from serve_app.results import EmbedResult
from serve_app.service.alias import Alias
from serve_app.service.catalog import Catalog
from serve_app.service.shadow import Shadow
from serve_app.web.dialect import Dialect, ErrorResponse
from serve_app.web.dialects import tei
from serve_app.web.dialects.extensions import CHUNK, USE_CACHE
from serve_app.web.endpoint import Endpoint, ParsedRequest, ViewResponse, ViewRoute
from serve_app.web.schema.fields import Body, BoolField, TextsField
from serve_app.web.schema.json_schema import STRING
from serve_app.web.schema.typed_dict import Vector, schema_of
from serve_app.web.schema.vector_encoding import float_rows

_TEXTS = TextsField("texts", "A text, or a list of texts.", required=True)
_NORMALIZE = BoolField(
    "normalize",
    "If false, vectors keep the model's length, which is 1 where the model itself normalizes them. "
    "By default they have unit length.",
)


class EmbedReply(TypedDict):
    """The reply of `POST /embed` with `texts`."""

    vectors: list[Vector]


def parse(body: Body, spec: ModelSpec) -> ParsedRequest:
    """Parses `{"texts": […], "normalize": true}`.

    Raises:
        InvalidRequest: a field is missing or has a wrong type.
    """
    job = EmbedJob(
        _TEXTS(body),
        normalize=_NORMALIZE(body) is not False,
        truncation="chunk" if CHUNK(body) else "end",
        use_cache=USE_CACHE(body) is not False,
    )
    return ParsedRequest(job, _render)


def _render(result: EmbedResult) -> bytes:
    reply: EmbedReply = {"vectors": [*float_rows(result)]}
    return orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)


class ErrorReply(TypedDict):
    """The body of an error."""

    error: str


ERROR_SCHEMA = schema_of(ErrorReply)


def render_error(error: EmbedServeError) -> ErrorResponse:
    """Returns the error as `{"error": message}`."""
    body: ErrorReply = {"error": str(error)}
    return ErrorResponse(error.status, orjson.dumps(body))


class QuantizationLossReport(TypedDict):
    """What int8 vectors lose against float32, on texts of other kinds than the calibration's."""

    texts: int
    cosine_min: float  # of the two vectors of a text
    cosine_p1: float  # 1 % of the texts have a smaller one
    cosine_mean: float
    rank_correlation: float  # Spearman's, of the similarities of pairs of texts
    kept: float  # share of the 10 nearest neighbours that are the same
    kept_first: float  # share of the texts whose nearest neighbour is the same
    kept_mixed: float  # as `kept`, where int8 vectors search among those at float32


class ParityReport(TypedDict):
    """Agreement of the engine's outputs with sentence-transformers at float32."""

    precision: str
    texts: int
    cosine_min: NotRequired[float | None]  # of vectors
    score_error_max: NotRequired[float | None]  # of scores
    quantization_loss: NotRequired[QuantizationLossReport]  # at `int8` and `int8-fast`


class CacheLossReport(TypedDict):
    """What vectors lose in a cache with another data type than float32."""

    dtype: str
    texts: int
    cosine_min: float
    cosine_mean: float
    neighbor_agreement: float


class GpuReport(TypedDict):
    """The GPU of an engine."""

    name: str
    uuid: str
    memory_bytes: int
    memory_limit_bytes: int | None  # the most that tensors may take; null: all that is free


class PlacementReport(TypedDict):
    """Where the replica that answers runs its models."""

    node: str  # host name
    cpus: str  # such as `0-3,8`
    numa_node: int | None  # null: the CPUs are on several, or it is unknown
    gpu: GpuReport | None  # null: it runs on CPUs


_Seconds = Annotated[
    Mapping[str, float], {"type": "object", "additionalProperties": {"type": "number"}}
]
_StringMapping = Annotated[Mapping[str, str], {"type": "object", "additionalProperties": STRING}]


class ModelSummary(TypedDict):
    """One of several models."""

    name: str
    aliases: list[str]
    kind: str
    tasks: list[str]
    dim: int
    max_tokens: int
    space: str


class CanaryReport(TypedDict):
    """The second model of an alias, and how its clients are selected."""

    model: str
    space: str
    share: float | None  # of the clients; null: by API key


class ShadowSummary(TypedDict):
    """The second model that is compared, in the replica that answers; see `GET /shadow`."""

    model: str
    space: str
    share: float  # of the texts
    compared: int  # texts
    kept: float | None  # share of the 10 nearest neighbours that are the same; null: too few texts
    kept_first: float | None
    rank_correlation: float | None
    cosine: float | None  # null: not asked for


class AliasReport(TypedDict):
    """A name that stands for one model, or for two of them."""

    alias: str
    model: str
    space: str
    canary: NotRequired[CanaryReport]
    shadow: NotRequired[ShadowSummary]


class InfoReply(tei.InfoReply):
    """The reply of `GET /info`. Fields of the engine are null while no replica answers."""

    model: str
    version: str
    aliases: list[str]
    kind: str
    tasks: list[str]
    dim: int
    max_tokens: int
    input_types: list[str]
    space: str
    weights_sha256: str | None
    engine: str | None
    device: str | None
    precision: str | None
    threads: int | None
    parity: ParityReport | None
    refused: list[str] | None
    cache_loss: NotRequired[CacheLossReport]
    placement: NotRequired[PlacementReport]  #: unless a provider runs the model
    startup: NotRequired[_Seconds]  #: how long the replica took to start, by step
    asleep: NotRequired[bool]  #: scaled to zero; the next text starts a replica
    #: Input types whose prompt is empty in the model's files → the one whose prompt they use.
    prompt_sources: NotRequired[_StringMapping]
    versions: _StringMapping
    fallback: NotRequired[list[str]]  #: the models that answer while this one fails, in this order
    spill_over_after_s: NotRequired[float]  #: the wait beyond which the first of them answers too
    models: NotRequired[list[ModelSummary]]  #: if several are served; `?model=` describes another
    alias_models: NotRequired[list[AliasReport]]  #: the models of the setting `aliases`


async def _info(catalog: Catalog, arguments: Mapping[str, Any]) -> ViewResponse:
    service = catalog.resolve(arguments.get("model"))
    info = await service.info()
    reply = cast(InfoReply, {**tei.info(service, info["precision"]), **info})
    if service.spec.prompt_sources:
        reply["prompt_sources"] = service.spec.prompt_sources
    if fallback := catalog.fallbacks.get(service.spec.name):
        reply["fallback"] = [*fallback.models]
        if fallback.spill_over_after_s is not None:
            reply["spill_over_after_s"] = fallback.spill_over_after_s
    if len(catalog.services) > 1:
        reply["models"] = [
            {
                "name": spec.name,
                "aliases": list(spec.aliases),
                "kind": spec.kind,
                "tasks": list(spec.tasks),
                "dim": spec.dim,
                "max_tokens": spec.max_tokens,
                "space": spec.space_id,
            }
            for spec in (service.spec for service in catalog.services)
        ]
    if catalog.aliases:
        reply["alias_models"] = [_alias_report(alias) for alias in catalog.aliases]
    return ViewResponse(orjson.dumps(reply))


def _alias_report(alias: Alias) -> AliasReport:
    spec, canary = alias.primary.spec, alias.canary
    report: AliasReport = {"alias": alias.name, "model": spec.name, "space": spec.space_id}
    if canary is not None:
        second = canary.service.spec
        report["canary"] = {
            "model": second.name,
            "space": second.space_id,
            "share": canary.share,
        }
    if alias.shadow is not None:
        report["shadow"] = _shadow_summary(alias.shadow)
    return report


def _shadow_summary(shadow: Shadow) -> ShadowSummary:
    sample, spec = shadow.sample(), shadow.second.spec
    found = sample.agreement
    return {
        "model": spec.name,
        "space": spec.space_id,
        "share": shadow.settings.share,
        "compared": sample.outcomes.get("compared", 0),
        "kept": found and found.kept,
        "kept_first": found and found.kept_first,
        "rank_correlation": found and found.rank_correlation,
        "cosine": found and found.cosine,
    }


DIALECT = Dialect(
    name="sidecar",
    order=30,
    render_error=render_error,
    error_schema=ERROR_SCHEMA,
    endpoints=(
        Endpoint(
            path="/embed",
            summary="Embed texts.",
            deciding_key="texts",
            fields=(_TEXTS, _NORMALIZE, CHUNK, USE_CACHE),
            parse=parse,
            reply_schema=schema_of(EmbedReply),
        ),
    ),
    views=(
        ViewRoute(
            path="/info",
            summary="Describe the model, its limits and the engine that runs it.",
            respond=_info,
            by_client=True,
            reply_schema=schema_of(InfoReply),
        ),
    ),
)
