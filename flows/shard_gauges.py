"""What a shard tells of its waiting: event time closed, pending rows, and each of its inputs."""

from __future__ import annotations

import math

from prometheus_client import Gauge

from flows.records import BEGIN_MS, END_MS
from flows.watermarks import STANDINGS, Source, Watermarks
from monitoring.metrics import (
    DAS_INPUT_STANDING,
    DAS_INPUT_WATERMARK,
    DAS_OLDEST,
    DAS_PENDING,
    DAS_WATERMARK,
)

EVERY_S = 1.0
"""Interval at most, between two recovery snapshots."""


class ShardGauges:
    """The gauges of one shard."""

    def __init__(self, shard: int, watermarks: Watermarks) -> None:
        self._shard, self._watermarks = str(shard), watermarks
        self._due_s = -math.inf

    def refresh(self, done_ms: int, pending: int, now_s: float) -> None:
        """Set what is cheap to know, at most every `EVERY_S`.

        Args:
            done_ms: event time closed.
            pending: impressions whose window is open.
            now_s: wall clock.
        """
        if now_s >= self._due_s:
            self._due_s = now_s + EVERY_S
            self._set(done_ms, pending)

    def set(self, done_ms: int, pending: int, oldest_ms: int | None) -> None:
        """Set everything.

        Args:
            done_ms: event time closed.
            pending: impressions whose window is open.
            oldest_ms: event time of the oldest impression; None if there is none.
        """
        self._set(done_ms, pending)
        oldest_s = math.nan if oldest_ms is None or not pending else oldest_ms / 1000
        DAS_OLDEST.labels(self._shard).set(oldest_s)

    def _set(self, done_ms: int, pending: int) -> None:
        DAS_PENDING.labels(self._shard).set(pending)
        show(DAS_WATERMARK, done_ms, self._shard)
        for source, ts_ms in self._watermarks.values.items():
            name = input_name(source)
            show(DAS_INPUT_WATERMARK, ts_ms, self._shard, name)
            code = STANDINGS.index(self._watermarks.standing(source, done_ms))
            DAS_INPUT_STANDING.labels(self._shard, name).set(code)


def input_name(source: Source) -> str:
    """Label of a source: `labels/0`."""
    kind, partition = source
    return f"{kind}/{partition}"


def show(gauge: Gauge, ts_ms: int, *labels: str) -> None:
    """Set a gauge to an event time, unless the log has not begun or has ended."""
    if BEGIN_MS < ts_ms < END_MS // 2:
        gauge.labels(*labels).set(ts_ms / 1000)
