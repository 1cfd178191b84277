"""Which records of a partition are late: a property of the log, whoever reads it and when."""

from __future__ import annotations

from typing import Any

import numpy as np

from flows.records import BEGIN_MS, END_MS

Timestamps = np.ndarray[Any, np.dtype[np.int64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]


class Lateness:
    """Judges the records of one partition in their order; a checkpoint keeps `running_max_ms`."""

    def __init__(self, lateness_ms: int, running_max_ms: int = BEGIN_MS) -> None:
        """Begin, or go on, with a partition.

        Args:
            lateness_ms: how far a record may lie behind the newest one before it.
            running_max_ms: newest event time so far.
        """
        if lateness_ms < 0:
            raise ValueError(f"lateness_ms must be at least 0, got {lateness_ms}")
        self._lateness_ms = lateness_ms
        self.running_max_ms = running_max_ms

    def judge(self, ts_N: Timestamps) -> Mask:
        """Whether each record is on time, shape [N]; records follow those judged before."""
        maximum_N1 = np.maximum.accumulate(np.concatenate(([self.running_max_ms], ts_N)))
        self.running_max_ms = int(maximum_N1[-1])
        return ts_N >= maximum_N1[:-1] - self._lateness_ms

    @property
    def watermark_ms(self) -> int:
        """No record on time will be older; BEGIN_MS before the first, END_MS after the last."""
        if self.running_max_ms in (BEGIN_MS, END_MS):
            return self.running_max_ms
        return self.running_max_ms - self._lateness_ms

    def end(self) -> None:
        """Say that the log has no more records."""
        self.running_max_ms = END_MS
