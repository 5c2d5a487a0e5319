"""Costs for people and dashboards: rows of the ledger, grouped by day, model or key."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from itertools import permutations
from typing import Any, Literal, NamedTuple, get_args

from serve_app.access.ledger import LedgerRow, Usage
from serve_app.cost import format_usd
from serve_app.errors import InvalidRequest, short_repr

Grouping = Literal["day", "model", "key"]
GROUPINGS: tuple[Grouping, ...] = get_args(Grouping)
#: Each list of groupings, such as `model,day`.
GROUPING_LISTS: Mapping[str, tuple[Grouping, ...]] = {
    ",".join(groupings): groupings
    for length in (1, 2, 3)
    for groupings in permutations(GROUPINGS, length)
}


class CostLine(NamedTuple):
    """The usage of one group."""

    group: tuple[str, ...]  #: the values that the report is grouped by
    usage: Usage

    def amounts(self) -> dict[str, int | str]:
        """Returns the usage with amounts in US dollars, as decimals of nine digits."""
        amounts: dict[str, int | str] = self.usage._asdict()
        cost, saved = amounts.pop("nano_usd"), amounts.pop("saved_nano_usd")
        return {**amounts, "cost_usd": format_usd(int(cost)), "saved_usd": format_usd(int(saved))}


class CostReport(NamedTuple):
    """Usage by groups, and its sum."""

    by: tuple[Grouping, ...]
    lines: Sequence[CostLine]
    total: CostLine

    @classmethod
    def of(cls, rows: Iterable[LedgerRow], by: Sequence[Grouping]) -> "CostReport":
        """Returns the report on rows, in the order of the groups."""
        sums: dict[tuple[str, ...], Usage] = {}
        total = Usage()
        for row in rows:
            group = tuple(str(getattr(row, name)) for name in by)
            sums[group] = sums.get(group, Usage()).plus(row.usage)
            total = total.plus(row.usage)
        lines = [CostLine(*line) for line in sorted(sums.items())]
        return cls(tuple(by), lines, CostLine((), total))

    def as_json(self) -> dict[str, Any]:
        """Returns the report as the body of `GET /cost`."""
        return {
            "rows": [
                {**dict(zip(self.by, line.group, strict=True)), **line.amounts()}
                for line in self.lines
            ],
            "total": self.total.amounts(),
        }


class CostQuery(NamedTuple):
    """What a report covers."""

    by: tuple[Grouping, ...] = GROUPINGS
    since: date | None = None
    until: date | None = None  #: the last day

    @classmethod
    def parse(cls, arguments: Mapping[str, str]) -> "CostQuery":
        """Reads the query parameters of `GET /cost`.

        Raises:
            InvalidRequest: one is malformed.
        """
        by = arguments.get("by", ",".join(GROUPINGS))
        if by not in GROUPING_LISTS:
            raise InvalidRequest(
                f"`by` is a list of {', '.join(GROUPINGS)}, separated by commas, not "
                f"{short_repr(by)}.",
                "by",
            )
        return cls(
            GROUPING_LISTS[by],
            _parse_day(arguments.get("since"), "since"),
            _parse_day(arguments.get("until"), "until"),
        )

    def report(self, rows: Iterable[LedgerRow]) -> CostReport:
        """Returns the report on the rows within the days."""
        first, last = self.since or date.min, self.until or date.max
        return CostReport.of((row for row in rows if first <= row.day <= last), self.by)


def _parse_day(text: str | None, name: str) -> date | None:
    if text is None:
        return None
    try:
        day = date.fromisoformat(text)
    except ValueError:
        day = None
    if day is None or text != str(day):  # `fromisoformat` takes weeks and compact forms too
        raise InvalidRequest(
            f"`{name}` is a day in UTC such as 2026-11-28, not {short_repr(text)}.", name
        )
    return day
