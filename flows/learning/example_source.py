"""Examples in the order of learning: one source partition a model, each at its own place.

It needs no recovery store: a model's own checkpoint says where its source begins.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition

from flows.kafka.client import client_config
from flows.kafka.consumer import PartitionConsumer
from flows.kafka.lost_offsets import LostOffsets
from flows.learning.example_reader import ExampleReader, Mask, Place, Ready
from flows.learning.gaps import AGAIN, GapWatch
from flows.learning.stragglers import Stragglers
from flows.records import BEGIN_MS, END_MS, ExampleHeader, decode, example_schema
from flows.runner import stop_requested
from flows.settings import Settings
from flows.wording import moment
from monitoring.metrics import SOURCE_LAG, TRAIN_LEFT_OUT, TRAIN_PASSED_OVER, TRAIN_REPEATS

logger = logging.getLogger(__name__)

PAUSE = timedelta(milliseconds=5)
MAX_MESSAGES = 64
"""Read at a time from one partition."""
MAX_PENDING_ROWS = 500_000
"""Beyond it, only partitions are read that hold the others back."""
PULSE_S = 0.5
"""Live: a model hears at least so often where it stands, so that it sees a quiet stream."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lesson:
    """What one model is to learn next."""

    model: str
    ready: Ready | None
    """None: nothing more comes in this process."""


class ModelExamples(StatefulSourcePartition[Lesson, None]):
    """All partitions of `examples` for one model.

    Args:
        settings: of the run.
        model: its name.
        place: where it goes on; at the start, it begins with the oldest that is retained.
        keep: which rows it learns.

    Raises:
        OffsetLost: what comes behind `place` is no longer retained.
    """

    def __init__(
        self,
        settings: Settings,
        model: str,
        place: Place,
        keep: Callable[..., Mask],
    ) -> None:
        topic = settings.topics.examples
        self._model = model
        self._topic = topic.name
        self._consumers = consumers(settings, model, place)
        self._begins_late = False
        if place.is_start:
            place = self._oldest(settings.das.shards)
        self._reader = ExampleReader(place, settings.das.bucket_ms, example_schema(settings), keep)
        self._ended = place.through_ms >= END_MS
        self._closed = False
        self._repeats = self._passed_over = 0
        self._gaps = GapWatch(model, topic.name)
        grace_s = settings.das.shard_grace_s
        self._stragglers = None if settings.as_of else Stragglers(grace_s)
        self._left_out: set[int] = set()
        self._shards = settings.das.shards
        self._told_s = time.monotonic()
        self._awake: datetime | None = None

    def next_batch(self) -> list[Lesson]:
        """Buckets that have become complete.

        Raises:
            ExamplesMissing: the next rows of a shard are not there, and nobody writes them.
            OffsetLost: messages were deleted before they were read.
        """
        if self._closed:
            raise StopIteration
        if self._ended or stop_requested():
            self._closed = True
            return [Lesson(model=self._model, ready=None)]
        num_read = self._read()
        gaps = self._reader.gaps.values()
        self._gaps.look({gap: self._consumers[gap.partition].at_end() for gap in gaps})
        if self._stragglers is not None:
            self._leave_out(self._stragglers)
        ready = self._reader.take(self._left_out) or self._pulse()
        if self._begins_late and ready is not None:
            self._tell_beginning()
        self._awake = None if num_read else datetime.now(timezone.utc) + PAUSE
        if ready is None:
            return []
        self._ended, self._told_s = ready.ended, time.monotonic()
        return [Lesson(model=self._model, ready=ready)]

    def next_awake(self) -> datetime | None:
        """Shortly, if nothing was read."""
        return self._awake

    def snapshot(self) -> None:
        """Nothing: the model's checkpoint holds the place."""

    def close(self) -> None:
        """Leave the broker."""
        for consumer in self._consumers:
            consumer.close()

    def _read(self) -> int:
        num_read = 0
        for partition in self._partitions():
            consumer = self._consumers[partition]
            for message in consumer.poll(MAX_MESSAGES):
                table, header = decode(message.value() or b"")
                place = ExampleHeader(**header)  # type: ignore[typeddict-item]
                self._reader.put(partition, message.offset() or 0, table, place)
                num_read += 1
            SOURCE_LAG.labels(self._topic, str(partition)).set(consumer.lag())
        TRAIN_REPEATS.labels(self._model).inc(self._reader.repeats - self._repeats)
        TRAIN_PASSED_OVER.labels(self._model).inc(self._reader.passed_over - self._passed_over)
        self._repeats, self._passed_over = self._reader.repeats, self._reader.passed_over
        return num_read

    def _oldest(self, shards: int) -> Place:
        """The oldest examples that are retained; it is said if they are not the first."""
        offsets = [consumer.position for consumer in self._consumers]
        self._begins_late = any(offsets)
        if self._begins_late:
            logger.warning(
                "%s has no checkpoint, and the first examples of topic %r are deleted: it begins "
                "with the oldest that are there, at offsets %s; %s",
                self._model,
                self._topic,
                listed(offsets),
                AGAIN,
            )
        return Place.oldest(offsets, shards)

    def _tell_beginning(self) -> None:
        self._begins_late = False
        logger.info(
            "%s learns from event time %s on: from there all shards are complete; their first "
            "numbers are %s",
            self._model,
            "the end" if self._reader.begins_ms >= END_MS else moment(self._reader.begins_ms),
            listed(self._reader.firsts()),
        )

    def _leave_out(self, stragglers: Stragglers) -> None:
        ends = [consumer.at_end() for consumer in self._consumers]
        read = [ends[shard % len(ends)] for shard in range(self._shards)]
        marks, through_ms = self._reader.marks(), self._reader.through_ms
        left_out = stragglers.among(marks, read, through_ms, time.monotonic())
        TRAIN_LEFT_OUT.labels(self._model).inc(len(left_out - self._left_out))
        self._left_out = left_out

    def _pulse(self) -> Ready | None:
        live = self._stragglers is not None and self._reader.through_ms > BEGIN_MS
        due = time.monotonic() >= self._told_s + PULSE_S
        return self._reader.nothing() if live and due else None

    def _partitions(self) -> list[int]:
        if self._reader.pending_rows < MAX_PENDING_ROWS:
            return list(range(len(self._consumers)))
        return sorted(
            {shard % len(self._consumers) for shard in self._reader.behind(self._left_out)}
        )


def consumers(settings: Settings, model: str, place: Place) -> list[PartitionConsumer]:
    """Of all partitions of `examples`; at the start, from the oldest message that is there.

    Raises:
        OffsetLost: what comes behind `place` is no longer retained.
    """
    topic, config = settings.topics.examples, client_config(settings.kafka)
    lost = LostOffsets(
        choice=f"{model} leaves out no example behind its checkpoint; {AGAIN}",
        anew=f"without its checkpoint (checkpoints/{model} of the run) it begins anew with what is "
        "there",
    )
    offsets = [None] * topic.partitions if place.is_start else place.positions
    return [
        PartitionConsumer(config, topic.name, partition, offset, lost=lost)
        for partition, offset in enumerate(offsets)
    ]


def listed(numbers: Sequence[int]) -> str:
    """Numbers as text."""
    return ", ".join(map(str, numbers))


class ExampleSource(FixedPartitionedSource[Lesson, None]):
    """One source partition a model.

    Args:
        settings: of the run.
        places: where each model begins; asked when its source is built.
        keep: by model, which rows it learns.
    """

    def __init__(
        self,
        settings: Settings,
        places: Callable[[str], Place],
        keep: dict[str, Callable[..., Mask]],
    ) -> None:
        self._settings = settings
        self._places = places
        self._keep = keep

    def list_parts(self) -> list[str]:
        """Names of the models."""
        return sorted(self._keep)

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> ModelExamples:
        """The examples of one model."""
        place = self._places(for_part)
        return ModelExamples(self._settings, for_part, place, self._keep[for_part])
