"""Normalised entropy over the stream, out of `quality/<model>.json`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flows.report.summary import TEACHER
from models.metrics import normalised_entropy

WINDOW_SHARE = 0.1
"""A point of a curve covers about this share of the stream, so that noise does not hide it."""
SUMS = {
    "student": ("student", "n", "positives"),
    "shadow": ("shadow", "n", "positives"),
    "FM": ("fm_covered", "n_covered", "positives_covered"),
    "Bayes": ("oracle", "n", "positives"),
}
"""Sum of log loss, rows and positives of each curve."""
UNITS_MS = {"minutes": 60_000, "hours": 3_600_000, "days": 86_400_000}
MIN_UNITS = 3
"""A longer unit is taken when the stream has more than this many of it."""

Interval = Mapping[str, Any]
Document = Mapping[str, Any]
Curve = list[tuple[int, float]]
"""Event time in ms, and NE of what came shortly before."""


def curves(document: Document, task: str) -> dict[str, Curve]:
    """Curves of a model and task that have points; the teacher is no student of itself."""
    intervals = [row for row in document["intervals"] if row["task"] == task]
    wanted = [name for name in SUMS if document["model"] != TEACHER or name in ("FM", "Bayes")]
    found = {name: ne_curve(intervals, *SUMS[name]) for name in wanted}
    width_ms = int(document["interval_ms"])
    return {
        name: [(start_ms + width_ms, ne) for start_ms, ne in points]
        for name, points in found.items()
        if points
    }


def ne_curve(intervals: Sequence[Interval], loss: str, count: str, positives: str) -> Curve:
    """Start of an interval and NE of it and those before it, about `WINDOW_SHARE` of the stream."""
    window = max(1, round(len(intervals) * WINDOW_SHARE))
    points = []
    for end in range(1, len(intervals) + 1):
        rows = intervals[max(0, end - window) : end]
        losses = [row[loss] for row in rows]
        if None in losses or not sum(losses):
            continue
        sums = [sum(row[name] for row in rows) for name in (positives, count)]
        ne = normalised_entropy(sum(losses), *sums)
        if math.isfinite(ne):
            points.append((int(rows[-1]["interval_start_ms"]), ne))
    return points


class EventTime:
    """The axis that all curves of a run share: from the beginning of its stream to the end.

    Args:
        documents: of all models of the run.
    """

    def __init__(self, documents: Iterable[Document]) -> None:
        edges = [
            row["interval_start_ms"] + ahead_ms
            for document in documents
            for row in document["intervals"]
            for ahead_ms in (0, document["interval_ms"])
        ]
        self._begin_ms = int(min(edges, default=0))
        length_ms = int(max(edges, default=0)) - self._begin_ms
        long = [name for name, ms in UNITS_MS.items() if length_ms > MIN_UNITS * ms]
        self.unit = long[-1] if long else "minutes"
        self.length = length_ms / UNITS_MS[self.unit]

    def of(self, times_ms: Iterable[int]) -> list[float]:
        """Times since the beginning, in `unit`."""
        return [(time_ms - self._begin_ms) / UNITS_MS[self.unit] for time_ms in times_ms]
