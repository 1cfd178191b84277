"""Which dead letters a command means: by topic, by reason, by age, by their place."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

import polars as pl

PLACE = re.compile(r"(?P<topic>[\w.-]+):(?P<partition>\d+):(?P<offset>\d+)(:(?P<index>\d+))?")
AGE = re.compile(r"(?P<number>\d+(\.\d+)?)(?P<unit>[smhd])")
UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where an event stood that was set aside, as `labels:0:17`, with a row `labels:0:17:3`."""

    topic: str
    partition: int
    offset: int
    index: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """Letters that fulfil all that is given."""

    topic: str | None = None
    """Where the event was read."""
    reason: str | None = None
    places: tuple[Place, ...] = ()
    """Any of them."""

    def of(self, letters: pl.DataFrame) -> pl.DataFrame:
        """The chosen ones of an index (flows/letters/log.py)."""
        if self.topic is not None:
            letters = letters.filter(pl.col("topic") == self.topic)
        if self.reason is not None:
            letters = letters.filter(pl.col("reason") == self.reason)
        if self.places:
            letters = letters.filter(pl.any_horizontal(*(at(place) for place in self.places)))
        return letters


def at(place: Place) -> pl.Expr:
    """Whether a letter's event stood there; without an index any row of the message will do."""
    here = (
        (pl.col("topic") == place.topic)
        & (pl.col("partition") == place.partition)
        & (pl.col("offset") == place.offset)
    )
    return here if place.index is None else here & (pl.col("index") == place.index)


def parsed_places(texts: Sequence[str]) -> tuple[Place, ...]:
    """Places as they are typed.

    Raises:
        ValueError: one is none.
    """
    found = []
    for text in texts:
        match = PLACE.fullmatch(text)
        if match is None:
            raise ValueError(f"a place is TOPIC:PARTITION:OFFSET[:INDEX], got {text!r}")
        index = match["index"]
        found.append(
            Place(
                topic=match["topic"],
                partition=int(match["partition"]),
                offset=int(match["offset"]),
                index=None if index is None else int(index),
            )
        )
    return tuple(found)


def parsed_since(text: str) -> int:
    """Wall clock in ms of an age as `10m`, or of a time in ISO 8601 (UTC unless it says).

    Whatever is before 1970 is 0: no record of a broker is older.

    Raises:
        ValueError: it is neither.
    """
    age = AGE.fullmatch(text)
    if age is not None:
        since_s = time.time() - float(age["number"]) * UNITS_S[age["unit"]]
        return round(1000 * max(0.0, since_s))
    return max(0, parsed_time(text, "--since is an age as 90s, 10m, 2h or 1d, or a time"))


def parsed_time(text: str, rule: str) -> int:
    """Time in ms of ISO 8601 (UTC unless it says).

    Args:
        text: as it is typed.
        rule: names the option, for the message.

    Raises:
        ValueError: it is no time.
    """
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        raise ValueError(f"{rule} as 2026-01-31T12:00, got {text!r}") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return round(1000 * moment.timestamp())
