"""What a part of the benchmark returns: figures, each with the bar that it must reach, if any."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One measured number."""

    name: str
    """What was measured."""
    value: float | None
    """None: could not be measured; `note` says why."""
    unit: str
    """Of the value, e.g. `events/s`, `x`, `s`."""
    bar: str = ""
    """The bar in words, e.g. `>= 6`; empty: there is none."""
    met: bool | None = None
    """Whether the bar is reached; None without a bar."""
    note: str = ""
    """What a reader must know: what else was equal or not, which round."""
    drawn_as: str = ""
    """Row of the picture: `group: label`; empty: not drawn."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def at_least(name: str, value: float, unit: str, bar: float, note: str = "") -> Figure:
    """A figure that must not be below its bar."""
    return Figure(name=name, value=value, unit=unit, bar=f">= {bar:g}", met=value >= bar, note=note)


def at_most(name: str, value: float, unit: str, bar: float, note: str = "") -> Figure:
    """A figure that must not be above its bar."""
    return Figure(name=name, value=value, unit=unit, bar=f"<= {bar:g}", met=value <= bar, note=note)


def unmeasured(name: str, unit: str, why: str, bar: str = "") -> Figure:
    """A figure that could not be measured; a bar that it has is not met."""
    return Figure(name=name, value=None, unit=unit, bar=bar, met=False if bar else None, note=why)
