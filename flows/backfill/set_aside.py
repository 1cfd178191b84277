"""What became of the events that a backfill reads: how many were accepted, how many set aside.

The run's own join has written dead letters of the latter; a backfill counts them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from flows.events.dead_letters import DeadLetters
from flows.join.segment import times

ACCEPTED = "accepted"
"""Beside the reasons that an event is set aside for."""
NONE = np.empty(0, dtype=np.int64)


class Judged(DeadLetters):
    """The events of one partition by what became of them; takes letters and writes none.

    A read may go beyond the last event that matters, and how far depends on the broker. What a read
    gave is therefore counted up to that event, which depends on the log alone.
    """

    def __init__(self, counts: Mapping[str, int], enough_ms: int) -> None:
        """Begin or go on.

        Args:
            counts: events so far.
            enough_ms: an event of this time or later is the last that matters.
        """
        self._counts, self._enough_ms = Counter(counts), enough_ms
        self._letters: list[tuple[int, str]] = []  # of the newest read: offset, reason

    def put(
        self,
        rejected: bytes | None,
        topic: str,
        partition: int,
        offset: int,
        reason: str,
        index: int | None = None,
        key: bytes | None = None,
        replay_of: bytes | None = None,
    ) -> None:
        """Note that an event was set aside."""
        self._letters.append((offset, reason))

    def flush(self) -> None:
        """Nothing is on its way."""

    def settle(self, accepted: Sequence[pa.Table]) -> None:
        """Count what the newest read gave.

        Args:
            accepted: its rows, in any order; of what was set aside, `put` has been told.
        """
        offset_N = np.concatenate([NONE, *(table["offset"].to_numpy() for table in accepted)])
        ts_N = np.concatenate([NONE, *map(times, accepted)])
        last = int(offset_N[ts_N >= self._enough_ms].min(initial=np.iinfo(np.int64).max))
        self._counts[ACCEPTED] += int(np.count_nonzero(offset_N <= last))
        self._counts.update(reason for offset, reason in self._letters if offset <= last)
        self._letters.clear()

    @property
    def counts(self) -> dict[str, int]:
        """Events by ACCEPTED, and by the reason that they were set aside for; none are 0."""
        return {name: number for name, number in self._counts.items() if number}


def by_topic(judged: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """Events of each topic by what became of them.

    Args:
        judged: the same of each partition, as `labels/0`.
    """
    found: dict[str, Counter[str]] = {}
    for name, counts in judged.items():
        found.setdefault(name.rpartition("/")[0], Counter()).update(counts)
    return {topic: dict(sorted(counts.items())) for topic, counts in sorted(found.items())}


def reasons(counts: Mapping[str, int]) -> dict[str, int]:
    """The events that were set aside, by reason."""
    return {reason: number for reason, number in counts.items() if reason != ACCEPTED}


def told(counts: Mapping[str, int]) -> str:
    """How many events were set aside, of how many, and why."""
    why = ", ".join(f"{reason} {number:,}" for reason, number in reasons(counts).items())
    return f"{sum(reasons(counts).values()):,} of {sum(counts.values()):,} events ({why})"
