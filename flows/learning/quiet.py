"""When a live model is published by the wall clock, because its stream has become quiet."""

from __future__ import annotations

import time
from collections.abc import Callable

from flows.records import BEGIN_MS

STILL_BUCKETS = 2
STILL_S = 1.0
"""Event time stands still if it has not moved for so many buckets and so long."""


class QuietStream:
    """Watches event time by the wall clock.

    Args:
        every_ms: interval between snapshots.
        bucket_ms: the step in which event time moves.
        clock: seconds that never go back.
    """

    def __init__(
        self, every_ms: int, bucket_ms: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._every_ms = every_ms
        self._still_s = STILL_BUCKETS * bucket_ms / 1000 + STILL_S
        self._clock = clock
        self._through_ms = BEGIN_MS
        self._moved_s = self._passed_s = clock()

    def overdue(self, through_ms: int) -> bool:
        """Whether event time stands still, and no boundary was passed for a whole interval.

        A stream that flows is never overdue, however its boundaries and the clock jitter.
        """
        now_s = self._clock()
        if through_ms > self._through_ms:
            if through_ms // self._every_ms > self._through_ms // self._every_ms:
                self._passed_s = now_s
            self._through_ms, self._moved_s = through_ms, now_s
        since_passed_s = now_s - self._passed_s
        return now_s - self._moved_s >= self._still_s and since_passed_s * 1000 >= self._every_ms
