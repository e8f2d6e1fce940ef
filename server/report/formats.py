"""Numbers to text for the report: one place for digits, units and the dash for a missing value."""

from __future__ import annotations

DASH = "–"
SPACE = "\u00a0"  # between a number and its unit: never broken over two lines


def number(value: float | None, digits: int = 3) -> str:
    """A plain number with fixed digits."""
    return DASH if value is None else f"{value:.{digits}f}".replace("-", "−")


def signed(value: float | None, digits: int = 2) -> str:
    """A change, with its sign."""
    return (
        DASH
        if value is None
        else ("+" if round(value, digits) > 0 else "") + number(round(value, digits) + 0.0, digits)
    )


def count(value: float | None) -> str:
    """A whole number with thin spaces between thousands."""
    return DASH if value is None else f"{round(value):,}".replace(",", "\u2009")


def interval(ends: tuple[float, float] | None) -> str:
    """A confidence interval, `[low–high]`; empty when it is not known."""
    return f"[{number(ends[0], 2)}–{number(ends[1], 2)}]" if ends else ""


def spread(ends: tuple[float, float] | None) -> str:
    """The range over sites behind a mean, `(low–high)`; empty when it is not known."""
    return f"({number(ends[0], 2)}–{number(ends[1], 2)})" if ends else ""


def percent(share: float | None, digits: int = 1) -> str:
    """A share of one as a percentage."""
    return DASH if share is None else f"{100 * share:.{digits}f}{SPACE}%"


def size(n_bytes: float | None) -> str:
    """Bytes in decimal units: 1 MB is a million bytes."""
    if n_bytes is None:
        return DASH
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= scale:
            return f"{n_bytes / scale:.1f}{SPACE}{unit}"
    return f"{n_bytes:.0f}{SPACE}B"


def duration(seconds: float | None) -> str:
    """Seconds, or minutes and seconds, or hours and minutes."""
    if seconds is None:
        return DASH
    if seconds < 60:
        return f"{seconds:.1f}{SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{SPACE}min {rest:02d}{SPACE}s"
    return f"{minutes // 60}{SPACE}h {minutes % 60:02d}{SPACE}min"


def words(name: str) -> str:
    """`scanner_strength` as `scanner strength`."""
    return name.replace("_", " ").strip()


def listed(items: list[str], limit: int = 6) -> str:
    """`a, b and c`; a long list is cut and says how many are left."""
    if len(items) > limit:
        return f"{', '.join(items[:limit])} and {len(items) - limit} more"
    return " and ".join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else "".join(items)
