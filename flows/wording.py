"""Numbers as people read them; a dash where there is none."""

from __future__ import annotations

import time


def number(value: float | None, digits: int = 4) -> str:
    """A number with thousands separated."""
    return "-" if value is None else f"{value:,.{digits}f}"


def percent(value: float | None, *, signed: bool = False) -> str:
    """A share; a signed one is a difference, and finer."""
    if value is None:
        return "-"
    return f"{100 * value:+.2f} %" if signed else f"{100 * value:.1f} %"


def age(seconds: float | None) -> str:
    """A short time."""
    return "-" if seconds is None else f"{seconds:,.1f} s"


def duration(seconds: float) -> str:
    """A longer time in its two largest units."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def clock(event_time_s: float | None) -> str:
    """Time of day in UTC."""
    return "-" if event_time_s is None else time.strftime("%H:%M:%S", time.gmtime(event_time_s))


def moment(ts_ms: float) -> str:
    """Date and time in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(ts_ms / 1000))
