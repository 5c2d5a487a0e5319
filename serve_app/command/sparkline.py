"""A chart in one line of text."""

from collections.abc import Sequence

_BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float | None], width: int) -> str:
    """Returns the latest values as bars from 0 to the largest of them, the latest on the right.

    Args:
        values: oldest first; None leaves a gap.
        width: in characters, one for each value.
    """
    shown = values[-width:] if width > 0 else []
    highest = max((value for value in shown if value is not None), default=0.0)
    return "".join(_bar(value, highest) for value in shown).rjust(max(0, width))


def _bar(value: float | None, highest: float) -> str:
    if value is None:
        return " "
    share = value / highest if highest > 0 else 0.0
    return _BARS[min(len(_BARS) - 1, max(0, int(share * len(_BARS))))]
