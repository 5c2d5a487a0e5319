"""`GET /cost`: what models, keys and days have cost, for dashboards."""

from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

import orjson

from serve_app.access.cost_report import GROUPING_LISTS, GROUPINGS, CostQuery
from serve_app.web.dialect import Dialect
from serve_app.web.dialects import openai
from serve_app.web.endpoint import Account, ViewResponse, ViewRoute
from serve_app.web.schema.fields import EnumField, SchemaContext, StringField
from serve_app.web.schema.json_schema import STRING, Schema
from serve_app.web.schema.typed_dict import schema_of


class CostAmounts(TypedDict):
    """Usage, and its amounts in US dollars with nine decimals, as strings: floats would round."""

    requests: int
    texts: int
    computed_texts: int
    tokens: int
    computed_tokens: int
    cost_usd: str
    saved_usd: str


class CostRow(CostAmounts):
    """The usage of one group; the fields that `by` doesn't name are absent."""

    day: NotRequired[str]  #: UTC
    model: NotRequired[str]
    key: NotRequired[str]  #: name of the API key; empty: requests without a key


class CostReply(TypedDict):
    """The reply of `GET /cost`."""

    rows: list[CostRow]
    total: CostAmounts


class _DayField(StringField):
    """A day, such as 2026-11-28."""

    def _value_schema(self, context: SchemaContext) -> Schema:
        return {**STRING, "format": "date"}


async def _cost(account: Account, arguments: Mapping[str, Any]) -> ViewResponse:
    """Returns the costs of the request's key, or of all keys where none is required."""
    query = CostQuery.parse(arguments)
    rows = await account.ledger.rows(query.since)
    report = query.report(row for row in rows if account.key in (None, row.key))
    return ViewResponse(orjson.dumps(report.as_json()))


DIALECT = Dialect(
    name="cost",
    order=85,
    render_error=openai.render_error,
    error_schema=openai.ERROR_SCHEMA,
    views=(
        ViewRoute(
            path="/cost",
            summary="What requests to models with a price have cost: those of the request's API "
            "key, or all where no key is required.",
            report_costs=_cost,
            reply_schema=schema_of(CostReply),
            query=(
                EnumField(
                    "by",
                    f"What rows are grouped by: {', '.join(GROUPINGS)}, separated by commas. All "
                    "if absent.",
                    choices=tuple(GROUPING_LISTS),
                ),
                _DayField("since", "First day (UTC)."),
                _DayField("until", "Last day (UTC)."),
            ),
        ),
    ),
)
