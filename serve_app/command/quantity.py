"""Numbers with units as people read them, in few characters. None is what isn't known."""

import math

NONE = "–"
_BYTE_UNITS = ("B", "KB", "MB", "GB", "TB")


def amount(value: float | None) -> str:
    """Returns a number with about three digits, such as `0.42`, `17.3`, `12.1 k`, `3.4 M`."""
    if value is None:
        return NONE
    for bound, divisor, unit in ((1e9, 1e9, " G"), (1e6, 1e6, " M"), (1e4, 1e3, " k")):
        if abs(value) >= bound:
            return _digits(value / divisor) + unit
    return _digits(value)


def _digits(value: float) -> str:
    if value == int(value) or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def percent(share: float | None) -> str:
    """Returns a share from 0 to 1 as a percentage."""
    if share is None:
        return NONE
    return f"{100 * share:.{1 if 0 < share < 0.1 else 0}f} %"


def milliseconds(value: float | None) -> str:
    """Returns milliseconds with their unit."""
    return NONE if value is None else f"{amount(value)} ms"


def seconds(value: float | None) -> str:
    """Returns a duration in seconds with a unit that suits it: `0.03 s`, `12 min`, `3.1 h`."""
    if value is None:
        return NONE
    if value < 120:
        return f"{_digits(value)} s"
    if value < 7200:
        return f"{value / 60:.0f} min"
    return f"{value / 3600:.1f} h" if value < 172_800 else f"{value / 86_400:.1f} d"


def usd(value: float | None) -> str:
    """Returns an amount of dollars; small ones with three digits."""
    if value is None:
        return NONE
    if value >= 1 or value == 0:
        return f"${value:,.2f}"
    return f"${value:.{2 - math.floor(math.log10(abs(value)))}f}"


def byte_size(value: float | None) -> str:
    """Returns a size with a binary unit, such as `1.5 GB`."""
    if value is None:
        return NONE
    power = min(len(_BYTE_UNITS) - 1, int(math.log2(max(1.0, value)) / 10))
    return f"{_digits(round(value / 1024**power, 1))} {_BYTE_UNITS[power]}"
