from datetime import date

import pytest

from serve_app.access.cost_report import CostQuery, CostReport
from serve_app.access.ledger import LedgerRow, Usage
from serve_app.errors import InvalidRequest

FIRST, SECOND = date(2026, 11, 1), date(2026, 11, 2)
ROWS = [
    LedgerRow(FIRST, "a", "bob", Usage(1, 2, 1, 30, 20, 5, 7)),
    LedgerRow(FIRST, "b", "", Usage(1, 2, 1, 30, 20, 10**18 + 1, 0)),
    LedgerRow(SECOND, "a", "", Usage(1, 2, 1, 30, 20, 50, 70)),
]


def groups(report: CostReport) -> dict[tuple[str, ...], int]:
    return {line.group: line.usage.nano_usd for line in report.lines}


def test_rows_are_summed_by_what_the_report_is_grouped_by() -> None:
    assert groups(CostReport.of(ROWS, ("model",))) == {("a",): 55, ("b",): 10**18 + 1}
    assert groups(CostReport.of(ROWS, ("key", "day"))) == {
        ("", "2026-11-01"): 10**18 + 1,
        ("", "2026-11-02"): 50,
        ("bob", "2026-11-01"): 5,
    }
    assert CostReport.of(ROWS, ("model",)).total.usage.nano_usd == 10**18 + 56


def test_a_query_selects_days_and_groups() -> None:
    query = CostQuery.parse({"by": "model,day", "since": "2026-11-02", "until": "2026-11-02"})
    assert groups(query.report(ROWS)) == {("a", "2026-11-02"): 50}
    assert CostQuery.parse({}).report(ROWS).by == ("day", "model", "key")
    assert groups(CostQuery.parse({"by": "day", "until": "2026-11-01"}).report(ROWS)) == {
        ("2026-11-01",): 10**18 + 6
    }


def test_amounts_are_exact_in_json() -> None:
    assert CostReport.of(ROWS[1:2], ("model",)).as_json() == {
        "rows": [
            {
                "model": "b",
                "requests": 1,
                "texts": 2,
                "computed_texts": 1,
                "tokens": 30,
                "computed_tokens": 20,
                "cost_usd": "1000000000.000000001",
                "saved_usd": "0.000000000",
            }
        ],
        "total": {
            "requests": 1,
            "texts": 2,
            "computed_texts": 1,
            "tokens": 30,
            "computed_tokens": 20,
            "cost_usd": "1000000000.000000001",
            "saved_usd": "0.000000000",
        },
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"by": "modl"}, "`by` is a list of day, model, key, separated by commas, not 'modl'."),
        ({"by": "day,day"}, "`by` is a list"),
        ({"by": ","}, "`by` is a list"),
        ({"by": ""}, "`by` is a list"),
        ({"since": ""}, "`since` is a day"),
        ({"since": "20261128"}, "`since` is a day"),
        ({"since": "2026-W48-6"}, "`since` is a day"),
        ({"since": "yesterday"}, "`since` is a day in UTC such as 2026-11-28, not 'yesterday'."),
        ({"until": "2026-02-30"}, "`until` is a day"),
    ],
)
def test_a_malformed_query_is_refused(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        CostQuery.parse(arguments)
    assert str(caught.value).startswith(message)
