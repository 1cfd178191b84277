"""A partition of the join's inputs within its span.

It ends with the end mark of its log; or where its watermark has passed all that the examples of the
range may need, and then counts as ended too; or at the last offset of its span. In the last case
its watermark stays where it is, and no window behind it is closed. What lies behind it is therefore
read for the count of open impressions only. If quiet partitions are left out, its watermark follows
the others instead, up to the newest of all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from bytewax.inputs import StatefulSourcePartition

from flows.backfill.course import Course, Range
from flows.backfill.plan import BackfillRefused, Span
from flows.backfill.set_aside import Judged
from flows.join.seal import Sealed, sealed
from flows.join.segment import times
from flows.join.sources import InputPartition, Item
from flows.join.watermarks import Source
from flows.records import END_MS
from flows.runner import stop_requested

PAUSE = timedelta(milliseconds=10)
"""Between two looks of a partition that is left out at the others."""
State: TypeAlias = "tuple[Any, list[tuple[str, int, int]], int, dict[str, int], bool]"
"""Of the join's own partition; watermarks; rows left open; events by what became of them; whether
the span is read."""


Saved: TypeAlias = "tuple[dict[Source, int], int, bool]"
"""Watermarks; rows left open; whether the span is read."""
Inner: TypeAlias = "tuple[InputPartition, Callable[[], int]]"
"""The join's own partition; offset of its next record."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """What a partition is, and what is wanted of it."""

    name: str
    """For people, as `labels/0`."""
    span: Span
    needed: Range
    shards: Sequence[int]
    """Those that have rows in it, and hear of its watermarks."""
    judged: Judged | None
    """What became of its events; None: it has predictions."""


class BoundedPartition(StatefulSourcePartition[Item, Sealed]):
    """A partition of the join's inputs that ends with its span."""

    def __init__(self, part: Part, course: Course, saved: Saved, inner: Inner | None) -> None:
        """Begin or go on; without an `inner`, the span is read."""
        self._name, self._shards, self._needed = part.name, part.shards, part.needed
        self._start, self._end = part.span.start, part.span.end
        self._judged = part.judged
        self._inner: InputPartition | None
        self._inner, self._position = inner or (None, lambda: part.span.end)
        self._course = course
        self._marks, self._open, self._done = saved
        self._following = False
        course.left_open[self._name] = self._open
        self._count([])
        course.unread[self._name] = min(self._marks.values())
        if self._done:
            self._finish()

    def next_batch(self) -> list[Item]:
        """Items that have arrived."""
        if self._done or self._inner is None:
            raise StopIteration
        if self._following:
            return self._follow()
        if self._position() >= self._end:
            self._finish()
            return []
        found = self._inner.next_batch()
        self._count(found)
        items = [kept for item in found if (kept := self._kept(item))]
        self._course.at(self._name, min(self._position(), self._end) - self._start)
        watermark_ms = min(self._marks.values())
        self._course.unread[self._name] = watermark_ms
        if watermark_ms >= self._needed.last_ms:
            items += self._advance(END_MS)
            self._finish()
        return items

    def next_awake(self) -> datetime | None:
        """A little later, if there was nothing."""
        if self._following:
            return datetime.now(timezone.utc) + PAUSE
        return None if self._done or self._inner is None else self._inner.next_awake()

    def snapshot(self) -> Sealed:
        """Where to go on, a `State`."""
        inner = None if self._inner is None else self._inner.snapshot()
        marks = [(*source, ms) for source, ms in self._marks.items()]
        counts = {} if self._judged is None else self._judged.counts
        return sealed((inner, marks, self._open, counts, self._done))

    def close(self) -> None:
        """Leave the topic."""
        if self._inner is not None:
            self._inner.close()

    def _finish(self) -> None:
        """The span is read, or the rest of it does not matter."""
        watermark_ms = min(self._marks.values())
        self._course.at(self._name, self._end - self._start)
        self._course.ended(self._name, watermark_ms)
        self._following = self._course.leave_out_quiet and watermark_ms < END_MS and not self._done
        self._done = not self._following

    def _follow(self) -> list[Item]:
        """Watermarks of a partition that is left out."""
        if stop_requested():
            raise StopIteration
        last = not self._course.unread
        items = self._advance(self._course.followed_ms)
        if last:
            self._following, self._done = False, True
        return items

    def _advance(self, ts_ms: int) -> list[Item]:
        """Raise all watermarks to `ts_ms` where they are lower."""
        raised = [source for source, ms in self._marks.items() if ms < ts_ms]
        self._marks.update(dict.fromkeys(raised, ts_ms))
        return [
            (str(s), ("watermark", s, source, ts_ms)) for s in self._shards for source in raised
        ]

    def _count(self, found: list[Item]) -> None:
        if self._judged is not None:
            self._judged.settle([rest[1] for _, (what, _, *rest) in found if what == "rows"])
            self._course.judged[self._name] = self._judged.counts

    def _kept(self, item: Item) -> Item | None:
        key, (what, shard, *rest) = item
        if what == "rows":
            kind, rows = rest
            if shard not in self._shards:
                raise BackfillRefused(
                    f"{self._name} holds rows of shard {shard}, which das.shards of this "
                    "configuration puts elsewhere: take das.shards of the run that wrote them"
                )
            rows = self._within(kind, rows)
            return (key, (what, shard, kind, rows)) if rows.num_rows else None
        if what == "watermark":
            source, ts_ms = rest
            self._marks[source] = max(self._marks[source], ts_ms)
        return item

    def _within(self, kind: str, rows: pa.Table) -> pa.Table:
        """Rows that may matter; impressions behind the cap are counted as open."""
        ts_ms = times(rows)
        is_impression = kind == "impressions"
        high_ms = self._needed.to_ms if is_impression else self._needed.last_ms
        inside = (ts_ms >= self._needed.first_ms) & (ts_ms < high_ms)
        below = ts_ms < self._course.cap_ms
        if is_impression:
            wanted = inside & (ts_ms >= self._needed.from_ms)
            self._open += int(np.count_nonzero(wanted & ~below))
            self._course.left_open[self._name] = self._open
        inside &= below
        return rows if inside.all() else rows.filter(pa.array(inside))
