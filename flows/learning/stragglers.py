"""Which shards a live trainer no longer waits for. Clock and marks come from outside.

A replay with `as_of` waits for every shard for ever, and has no use for this.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from flows.records import BEGIN_MS, END_MS


class Stragglers:
    """Shards that lag the first of the others by more than a grace of wall clock.

    A shard straggles while its mark is below where the first mark stood `grace_s` ago, although
    everything that it wrote was read, and the others go on. It is waited for again once its mark
    has caught up with what was applied.
    """

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._leads: deque[tuple[float, int]] = deque()  # (wall clock, mark), both ascending
        self._lead_ms = BEGIN_MS  # the first mark as it was `grace_s` ago

    def among(
        self, marks: Sequence[int], read: Sequence[bool], through_ms: int, now_s: float
    ) -> set[int]:
        """Numbers of the shards that straggle.

        Args:
            marks: of each shard.
            read: whether all that a shard wrote was read.
            through_ms: event time applied.
            now_s: wall clock.
        """
        first_ms = max((mark for mark in marks if mark < END_MS), default=BEGIN_MS)
        self._remember(first_ms, now_s)
        others_go_on = first_ms > self._lead_ms or not all(read)
        limits = [self._lead_ms if done and others_go_on else BEGIN_MS for done in read]
        return {
            shard
            for shard, (mark, limit) in enumerate(zip(marks, limits, strict=True))
            if mark < max(limit, through_ms)
        }

    def _remember(self, first_ms: int, now_s: float) -> None:
        if not self._leads or first_ms > self._leads[-1][1]:
            self._leads.append((now_s, first_ms))
        while self._leads and self._leads[0][0] <= now_s - self._grace_s:
            self._lead_ms = max(self._lead_ms, self._leads.popleft()[1])
