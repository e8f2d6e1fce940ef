"""Numbers to text for the report: one place for digits, units and the dash that stands for a missing value."""

from __future__ import annotations

DASH = "–"


def number(value: float | None, digits: int = 3) -> str:
    """A plain number with fixed digits."""
    return DASH if value is None else f"{value:.{digits}f}".replace("-", "−")


def count(value: float | None) -> str:
    """A whole number with thin spaces between thousands."""
    return DASH if value is None else f"{round(value):,}".replace(",", "\u2009")


def interval(low: float | None, high: float | None, digits: int = 2) -> str:
    """`[low–high]`, empty when it is not known."""
    return "" if low is None or high is None else f"[{number(low, digits)}–{number(high, digits)}]"


def percent(share: float | None, digits: int = 1) -> str:
    """A share of one as a percentage."""
    return DASH if share is None else f"{100 * share:.{digits}f} %"


def size(n_bytes: float | None) -> str:
    """Bytes in decimal units: 1 MB is a million bytes."""
    if n_bytes is None:
        return DASH
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= scale:
            return f"{n_bytes / scale:.1f} {unit}"
    return f"{n_bytes:.0f} B"


def duration(seconds: float | None) -> str:
    """Seconds, or minutes and seconds, or hours and minutes."""
    if seconds is None:
        return DASH
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def words(name: str) -> str:
    """`scanner_strength` as `scanner strength`."""
    return name.replace("_", " ").strip()


def listed(items: list[str], limit: int = 6) -> str:
    """`a, b and c`; a long list is cut and says how many are left."""
    if len(items) > limit:
        return f"{', '.join(items[:limit])} and {len(items) - limit} more"
    return " and ".join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else "".join(items)
