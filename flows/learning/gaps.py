"""Examples that are missing: how long a trainer waits for them, and what it says then.

A writer that goes on from an earlier state writes numbers again, so a gap may be filled. One that
nobody fills stops the trainer: it learns examples in their order, or not at all.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from monitoring.metrics import TRAIN_GAPS

logger = logging.getLogger(__name__)

WAIT_S = 30.0
"""From when the partition was read to its end; a filling that goes on is waited for."""
AGAIN = (
    "`exfm backfill --topic NAME` makes them again from the events that are retained, for a new "
    "run with topics.examples.name = 'NAME'"
)
WAY_OUT = (
    "where teacher.version = 'as_of' and the input topics hold every event, stop das, remove its "
    f"state folder and start it: it writes the same examples again; else {AGAIN}"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Gap:
    """Rows of a shard that are missing, where later ones have come."""

    shard: int
    expected: int
    """Running number of the first missing row."""
    found: int
    """Running number behind the missing rows, as the first later message says."""
    partition: int
    """Of that message."""
    offset: int


class ExamplesMissing(RuntimeError):
    """Nobody wrote the rows of a gap; the message names shard and numbers."""


class GapWatch:
    """The gaps that one model waits for.

    Args:
        model: its name.
        topic: of the examples.
        clock: seconds that never go back.
    """

    def __init__(self, model: str, topic: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._model, self._topic, self._clock = model, topic, clock
        self._since_s: dict[Gap, float] = {}  # since all was read; infinite before

    def look(self, gaps: Mapping[Gap, bool]) -> None:
        """Say what is new.

        Args:
            gaps: those that are there now, and whether all of their partition was read.

        Raises:
            ExamplesMissing: one was waited for in vain.
        """
        told = {(gap.shard, gap.found, gap.offset) for gap in self._since_s}
        for gap in gaps:
            if (gap.shard, gap.found, gap.offset) not in told:
                TRAIN_GAPS.labels(self._model).inc()
                logger.warning("%s; waiting for them; %s", self._named(gap), WAY_OUT)
        now_s = self._clock()
        before_s, self._since_s = self._since_s, {}
        for gap, is_read in gaps.items():
            since_s = before_s.get(gap, math.inf)
            self._since_s[gap] = since_s = min(since_s, now_s) if is_read else since_s
            if now_s - since_s >= WAIT_S:
                raise ExamplesMissing(
                    f"{self._named(gap)}, and nobody wrote them within {WAIT_S:g} s; {WAY_OUT}"
                )

    def _named(self, gap: Gap) -> str:
        return (
            f"{self._model}: topic {self._topic!r} partition {gap.partition} offset {gap.offset}: "
            f"shard {gap.shard} goes on at number {gap.found}, expected {gap.expected}: "
            f"{gap.found - gap.expected} examples are missing"
        )
