"""Inputs of a backfill: the join's own, from the start of a span to its end.

A partition ends with the end mark of its log; or where its watermark has passed all that the
examples of the range may need, and then counts as ended too; or at the last offset of its span. In
the last case its watermark stays where it is, and no window behind it is closed. What lies behind
it is therefore read for the count of open impressions only. If quiet partitions are left out, its
watermark follows the others instead, up to the newest of all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition

from flows.backfill_plan import INPUTS, Kind, Plan, topic_of
from flows.consumer import PartitionConsumer
from flows.das_sources import EventPartition, InputPartition, Item, PredictionPartition
from flows.events import EventReader
from flows.kafka_client import client_config
from flows.label_rules import LabelRules
from flows.read_ahead import ReadAhead
from flows.records import BEGIN_MS, END_MS
from flows.runner import stop_requested
from flows.segments import times
from flows.settings import Settings
from flows.watermarks import TEACHER, Source

PAUSE = timedelta(milliseconds=10)
"""Between two looks of a partition that is left out at the others."""
State: TypeAlias = "tuple[Any, list[tuple[str, int, int]], int, bool]"
"""Of the join's own partition; watermarks; rows left open; whether the span is read."""


@dataclass
class Course:
    """How far the inputs of this process have come."""

    on_progress: Callable[[int], None]
    """Called with the number of offsets read so far."""
    leave_out_quiet: bool = False
    cap_ms: int = END_MS
    """Least watermark of the partitions whose span is read: no window behind it closes."""
    held_by: str = ""
    """The partition that has it."""
    left_open: dict[str, int] = field(default_factory=dict)
    """Impressions behind the cap, by partition."""
    offsets: dict[str, int] = field(default_factory=dict)
    unread: dict[str, int] = field(default_factory=dict)
    """Watermark of each partition whose span is not read yet."""
    newest_ms: int = BEGIN_MS
    """Largest watermark of the partitions whose span is read, END_MS left aside."""

    def at(self, name: str, num_offsets: int) -> None:
        """A partition has read so many offsets."""
        if self.offsets.get(name) != num_offsets:
            self.offsets[name] = num_offsets
            self.on_progress(sum(self.offsets.values()))

    def ended(self, name: str, watermark_ms: int) -> None:
        """The span of a partition is read, or does not matter any more."""
        self.unread.pop(name, None)
        if watermark_ms == END_MS:
            return
        self.newest_ms = max(self.newest_ms, watermark_ms)
        if not self.leave_out_quiet and (watermark_ms, name) < (self.cap_ms, self.held_by):
            self.cap_ms, self.held_by = watermark_ms, name

    @property
    def followed_ms(self) -> int:
        """Watermark of partitions that are left out."""
        return min(self.unread.values(), default=self.newest_ms)


class BackfillAhead(ReadAhead):
    """Lets a source read on behind the cap: it keeps nothing of that."""

    def __init__(self, settings: Settings, course: Course) -> None:
        super().__init__(settings)
        self._course = course

    def allows(self, watermark_ms: int) -> bool:
        """Whether a source that stands at `watermark_ms` shall read on."""
        return watermark_ms >= self._course.cap_ms or super().allows(watermark_ms)


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """Event times that matter to the examples that are wanted."""

    first_ms: int
    """Rows before it are not needed."""
    impressions_ms: int
    """Impressions from here on are not wanted."""
    last_ms: int
    """No label or prediction from here on matters; a watermark here closes every window."""

    @classmethod
    def of(cls, settings: Settings, plan: Plan) -> Range:
        """Of a plan."""
        first_ms, last_ms = plan.from_ms, plan.to_ms
        if first_ms > BEGIN_MS:
            first_ms -= settings.das.repeat_horizon_ms
        if last_ms < END_MS:
            last_ms += LabelRules.of(settings).keep_ms + settings.das.bucket_ms
        return cls(first_ms=first_ms, impressions_ms=plan.to_ms, last_ms=last_ms)


class BoundedPartition(StatefulSourcePartition[Item, State]):
    """A partition of the join's inputs that ends with its span."""

    def __init__(
        self,
        inner: InputPartition | None,
        position: Callable[[], int],
        name: str,
        bounds: tuple[int, int],
        needed: Range,
        course: Course,
        saved: tuple[dict[Source, int], int, bool],
        shards: Sequence[int],
    ) -> None:
        """Begin or go on.

        Args:
            inner: the join's own partition; None: its span is read.
            position: offset of the next record.
            name: of the partition, for people.
            bounds: of its span.
            needed: event times that matter.
            course: shared by all partitions.
            saved: watermarks, rows left open, whether the span is read.
            shards: that hear of the watermarks.
        """
        self._inner, self._position, self._name = inner, position, name
        self._start, self._end = bounds
        self._needed, self._course = needed, course
        self._marks, self._open, self._done = saved
        self._shards = shards
        course.left_open[name] = self._open
        self._following = False
        course.unread[name] = min(self._marks.values())
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
        items = [kept for item in self._inner.next_batch() if (kept := self._kept(item))]
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

    def snapshot(self) -> State:
        """Where to go on."""
        inner = None if self._inner is None else self._inner.snapshot()
        return inner, [(*source, ms) for source, ms in self._marks.items()], self._open, self._done

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

    def _kept(self, item: Item) -> Item | None:
        key, (what, shard, *rest) = item
        if what == "rows":
            kind, rows = rest
            rows = self._within(kind, rows)
            return (key, (what, shard, kind, rows)) if rows.num_rows else None
        source, ts_ms = rest
        self._marks[source] = max(self._marks[source], ts_ms)
        return item

    def _within(self, kind: str, rows: pa.Table) -> pa.Table:
        """Rows that may matter; impressions behind the cap are counted as open."""
        ts_ms = times(rows)
        is_impression = kind == "impressions"
        high_ms = self._needed.impressions_ms if is_impression else self._needed.last_ms
        inside = (ts_ms >= self._needed.first_ms) & (ts_ms < high_ms)
        below = ts_ms < self._course.cap_ms
        if is_impression:
            self._open += int(np.count_nonzero(inside & ~below))
            self._course.left_open[self._name] = self._open
        inside &= below
        return rows if inside.all() else rows.filter(pa.array(inside))


class BoundedSource(FixedPartitionedSource[Item, State]):
    """All partitions of one input."""

    def __init__(
        self, settings: Settings, kind: Kind, plan: Plan, ahead: ReadAhead, course: Course
    ) -> None:
        self._settings, self._kind, self._plan = settings, kind, plan
        self._ahead, self._course = ahead, course
        self._needed = Range.of(settings, plan)

    def list_parts(self) -> list[str]:
        """Partition numbers."""
        return [str(p) for p in range(len(self._plan.spans[self._kind]))]

    def build_part(
        self, step_id: str, for_part: str, resume_state: State | None
    ) -> BoundedPartition:
        """One partition, from the start of its span or from a snapshot."""
        partition = int(for_part)
        span = self._plan.spans[self._kind][partition]
        saved, marks, left_open, done = resume_state or (None, [], 0, False)
        inner, position = None, lambda: span.end
        if not done and self._kind == "fm_predictions":
            inner, position = self._predictions(partition, saved or (span.start, {}), span.end)
        elif not done:
            inner, position = self._events(partition, saved, span.start, span.end)
        known: dict[Source, int] = dict.fromkeys(self._sources(partition), BEGIN_MS)
        known |= {(kind, p): ms for kind, p, ms in marks}
        return BoundedPartition(
            inner,
            position,
            f"{topic_of(self._settings, self._kind).name}/{partition}",
            (span.start, span.end),
            self._needed,
            self._course,
            (known, left_open, done),
            self._shards(partition),
        )

    def _shards(self, partition: int) -> Sequence[int]:
        if self._kind == "fm_predictions":
            partitions = self._settings.topics.fm_predictions.partitions
            return range(partition, self._settings.das.shards, partitions)
        return range(self._settings.das.shards)

    def _sources(self, partition: int) -> Sequence[Source]:
        if self._kind == "fm_predictions":
            return [(TEACHER, p) for p in range(self._settings.topics.impressions.partitions)]
        return [(self._kind, partition)]

    def _events(
        self, partition: int, saved: Any, start: int, end: int
    ) -> tuple[InputPartition, Callable[[], int]]:
        kind: Literal["impressions", "labels"] = (
            "impressions" if self._kind == "impressions" else "labels"
        )
        place, ended = saved or ((start, BEGIN_MS), False)
        reader = EventReader(self._settings, kind, partition, place, None, end)
        inner = EventPartition(self._settings, kind, partition, reader, self._ahead, ended)
        return inner, lambda: reader.state()[0]

    def _predictions(
        self, partition: int, saved: Any, end: int
    ) -> tuple[InputPartition, Callable[[], int]]:
        offset, progress_ms = saved
        topic = self._settings.topics.fm_predictions.name
        config = client_config(self._settings.kafka)
        consumer = PartitionConsumer(config, topic, partition, offset, end)
        inner = PredictionPartition(self._settings, partition, consumer, self._ahead, progress_ms)
        return inner, lambda: consumer.position


def bounded_sources(
    settings: Settings, plan: Plan, ahead: ReadAhead, course: Course
) -> list[BoundedSource]:
    """The three inputs of the join, within a plan."""
    return [BoundedSource(settings, kind, plan, ahead, course) for kind in INPUTS]
