"""A clock that tests set by hand."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Clock:
    """Says what it was set to."""

    now_s: float = 1000.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now_s
