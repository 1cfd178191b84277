"""Inputs of a backfill: the join's own, from the start of a span to its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bytewax.inputs import FixedPartitionedSource

from flows.backfill.course import Course, Range
from flows.backfill.partition import BoundedPartition, Inner, Part, State
from flows.backfill.plan import INPUTS, Kind, Plan, topic_of
from flows.backfill.set_aside import Judged
from flows.events.reader import EventReader
from flows.join.read_ahead import ReadAhead
from flows.join.seal import Sealed, opened
from flows.join.sources import EventPartition, Item, PredictionPartition
from flows.join.watermarks import TEACHER, Source
from flows.kafka.client import client_config
from flows.kafka.consumer import PartitionConsumer
from flows.kafka.lost_offsets import LostOffsets
from flows.records import BEGIN_MS
from flows.settings import EventTopic, Settings


class BoundedSource(FixedPartitionedSource[Item, Sealed]):
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
        self, step_id: str, for_part: str, resume_state: Sealed | None
    ) -> BoundedPartition:
        """One partition, from the start of its span or from a snapshot."""
        partition = int(for_part)
        span = self._plan.spans[self._kind][partition]
        state: State = (None, [], 0, {}, False)
        if resume_state is not None:
            state = opened(resume_state)
        saved, marks, left_open, counts, done = state
        known: dict[Source, int] = dict.fromkeys(self._sources(partition), BEGIN_MS)
        known |= {(kind, p): ms for kind, p, ms in marks}
        part = Part(
            name=name_of(self._settings, self._kind, partition),
            span=span,
            needed=self._needed,
            shards=self._shards(partition),
            judged=self._judged(counts),
        )
        inner = None if done else self._inner(partition, saved, part)
        return BoundedPartition(part, self._course, (known, left_open, done), inner)

    def _judged(self, counts: dict[str, int]) -> Judged | None:
        topic = topic_of(self._settings, self._kind)
        if not isinstance(topic, EventTopic):
            return None
        return Judged(counts, self._needed.last_ms + topic.lateness_ms)

    def _shards(self, partition: int) -> Sequence[int]:
        if self._kind == "fm_predictions":
            partitions = self._settings.topics.fm_predictions.partitions
            return range(partition, self._settings.das.shards, partitions)
        return range(self._settings.das.shards)

    def _sources(self, partition: int) -> Sequence[Source]:
        if self._kind == "fm_predictions":
            return [(TEACHER, p) for p in range(self._settings.topics.impressions.partitions)]
        return [(self._kind, partition)]

    def _inner(self, partition: int, saved: Any, part: Part) -> Inner:
        span = part.span
        if self._kind == "fm_predictions":
            return self._predictions(
                partition, opened(saved) if saved else (span.start, {}), span.end
            )
        place, ended = opened(saved) if saved else ((span.start, BEGIN_MS), False)
        reader = EventReader(self._settings, self._kind, partition, place, part.judged, span.end)
        inner = EventPartition(self._settings, self._kind, partition, reader, self._ahead, ended)
        return inner, lambda: reader.state()[0]

    def _predictions(self, partition: int, saved: Any, end: int) -> Inner:
        offset, progress_ms = saved
        topic = self._settings.topics.fm_predictions.name
        config = client_config(self._settings.kafka)
        lost = LostOffsets.of_inputs(self._settings)
        consumer = PartitionConsumer(config, topic, partition, offset, end, lost=lost)
        inner = PredictionPartition(self._settings, partition, consumer, self._ahead, progress_ms)
        return inner, lambda: consumer.position


def name_of(settings: Settings, kind: Kind, partition: int) -> str:
    """A partition, for people."""
    return f"{topic_of(settings, kind).name}/{partition}"


def bounded_sources(
    settings: Settings, plan: Plan, ahead: ReadAhead, course: Course
) -> list[BoundedSource]:
    """The three inputs of the join, within a plan.

    `course` knows of all their partitions at once: one that is built before the others must not
    take them for read.
    """
    for kind in INPUTS:
        for partition in range(len(plan.spans[kind])):
            course.unread[name_of(settings, kind, partition)] = BEGIN_MS
    return [BoundedSource(settings, kind, plan, ahead, course) for kind in INPUTS]
