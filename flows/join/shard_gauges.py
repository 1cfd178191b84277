"""What a shard tells of its waiting: event time closed, pending rows, and each of its inputs."""

from __future__ import annotations

import math

from prometheus_client import Gauge

from flows.join.watermarks import STANDINGS, Source, Watermarks
from flows.records import BEGIN_MS, END_MS
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
        self._series: dict[tuple[Gauge, str], Gauge] = {}  # to find one by its labels is dear

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
        if is_told(done_ms):
            DAS_WATERMARK.labels(self._shard).set(done_ms / 1000)
        for source, ts_ms in self._watermarks.values.items():
            name = input_name(source)
            if is_told(ts_ms):
                self._of(DAS_INPUT_WATERMARK, name).set(ts_ms / 1000)
            code = STANDINGS.index(self._watermarks.standing(source, done_ms))
            self._of(DAS_INPUT_STANDING, name).set(code)

    def _of(self, gauge: Gauge, name: str) -> Gauge:
        """The series of an input; it is there from its first value on."""
        found = self._series.get((gauge, name))
        if found is None:
            found = self._series[gauge, name] = gauge.labels(self._shard, name)
        return found


def input_name(source: Source) -> str:
    """Label of a source: `labels/0`."""
    kind, partition = source
    return f"{kind}/{partition}"


def is_told(ts_ms: int) -> bool:
    """Whether an event time is one of people: its log has begun, and has not ended."""
    return BEGIN_MS < ts_ms < END_MS // 2
