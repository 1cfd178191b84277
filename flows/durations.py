"""Lengths of time in the configuration, in seconds.

They are used as whole milliseconds, so less than one would be none; and times are 64-bit numbers of
milliseconds, so there is a longest one.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

SHORTEST_S = 0.001
LONGEST_S = 10 * 365.25 * 86_400


def at_least(shortest_s: float) -> AfterValidator:
    """A rule: the duration is from `shortest_s` to ten years."""

    def check(seconds: float) -> float:
        if not shortest_s <= seconds <= LONGEST_S:
            raise PydanticCustomError(
                "duration", f"must be from {shortest_s:g} to {LONGEST_S:.0f}, ten years"
            )
        return seconds

    return AfterValidator(check)


def some_or_none(seconds: float) -> float:
    """The duration; an error unless it is 0, or from a millisecond to ten years."""
    if seconds != 0 and not SHORTEST_S <= seconds <= LONGEST_S:
        raise PydanticCustomError(
            "duration", f"must be 0, or from {SHORTEST_S:g} to {LONGEST_S:.0f}, ten years"
        )
    return seconds


Seconds = Annotated[float, at_least(SHORTEST_S)]
"""A duration."""
SecondsOrZero = Annotated[float, AfterValidator(some_or_none)]
"""A duration, or 0 for none."""
