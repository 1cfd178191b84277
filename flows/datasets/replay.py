"""Writes tables of impressions and labels to Kafka in event-time order, at a speed.

An impression is written when it happens, a label when it becomes known, so a live run learns of a
click no sooner than it would. A finite log ends with an end mark in each partition.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flows.datasets.noise import WRITTEN, Malformed, NoiseSource
from flows.events.encoding import FramedEvents, arrow_events, json_events, named_tasks
from flows.events.rules import impression_rules, label_rules
from flows.events.schema_registry import connect
from flows.kafka.producer import BatchProducer
from flows.records import END_HEADER, LABELS, shard_of
from flows.settings import EventTopic, Settings

IDLE_S = 0.02
"""Longest sleep between two looks at the stop flag."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """What happens in one stretch of event time, and the labels that it will lead to."""

    start_ms: int
    end_ms: int
    impressions: pa.Table
    """Sorted by `ts_ms`, all in [start_ms, end_ms)."""
    labels: pa.Table
    """Of these impressions, at any later time, in any order; `flows.records.LABELS`."""


@dataclass(kw_only=True)
class Progress:
    """What a replay has written so far."""

    event_ms: int = 0
    """Event time up to which everything is written."""
    impressions: int = 0
    labels: int = 0
    malformed: list[tuple[str, bytes]] = field(default_factory=list)
    """Topic and bytes of each broken message, as written."""
    added: dict[str, int] = field(default_factory=dict)
    """Noise among the rows, by kind."""


def replay(
    settings: Settings,
    slices: Iterable[Slice],
    producer: BatchProducer,
    *,
    speed: float | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Progress:
    """Write slices until they end or `should_stop`, then the labels still due, then the end marks.

    Args:
        settings: topics, tasks, `noise`.
        slices: consecutive in event time.
        producer: flushed before the return.
        speed: event seconds a wall-clock second, 1 is real time; None: as fast as possible.
        on_progress: called after each slice.
        should_stop: asked before each slice.

    Raises:
        ValueError: the speed is not positive.
    """
    if speed is not None and not speed > 0:
        raise ValueError(f"speed must be positive, got {speed}")
    progress, noise = Progress(), NoiseSource(settings.noise)
    writer = EventWriter(settings, producer, noise, progress)
    waiting = noise.labels(LABELS.empty_table())
    clock = None if speed is None else Clock(speed)
    for part in slices:
        if should_stop() or (clock and not clock.wait(part.start_ms, part.end_ms, should_stop)):
            break
        labels = pa.concat_tables([waiting, noise.labels(part.labels)])
        due = pc.less(labels[WRITTEN], part.end_ms)
        waiting = labels.filter(pc.invert(due))
        writer.impressions(noise.impressions(part.impressions))
        writer.labels(labels.filter(due))
        progress.event_ms = part.end_ms
        progress.added = dict(noise.added)
        on_progress(progress)
    writer.labels(waiting)
    writer.end()
    on_progress(progress)
    return progress


class Clock:
    """Maps event time to the wall clock, from the first slice on."""

    def __init__(self, speed: float) -> None:
        self._speed = speed
        self._origin_ms: int | None = None
        self._origin_s = 0.0

    def wait(self, start_ms: int, end_ms: int, should_stop: Callable[[], bool]) -> bool:
        """Wait until a slice is over; whether it was, not cut short by `should_stop`."""
        if self._origin_ms is None:
            self._origin_ms, self._origin_s = start_ms, time.monotonic()
        due_s = self._origin_s + (end_ms - self._origin_ms) / 1000 / self._speed
        while (left_s := due_s - time.monotonic()) > 0:
            if should_stop():
                return False
            time.sleep(min(left_s, IDLE_S))
        return True


class EventWriter:
    """Encodes rows and sends them, broken messages between them."""

    def __init__(
        self, settings: Settings, producer: BatchProducer, noise: NoiseSource, progress: Progress
    ) -> None:
        self._topics = settings.topics
        self._tasks = [t.name for t in settings.tasks]
        self._producer = producer
        self._noise = noise
        self._progress = progress
        self._framed = framed_events(settings)

    def impressions(self, table: pa.Table) -> None:
        """Write impressions in the order given."""
        self._write(self._topics.impressions, table)
        self._progress.impressions += len(table)

    def labels(self, table: pa.Table) -> None:
        """Write labels in the order of `written_ms`."""
        ordered = table.take(pc.sort_indices(table, [(WRITTEN, "ascending")])) if table else table
        self._write(self._topics.labels, named_tasks(ordered.drop_columns(WRITTEN), self._tasks))
        self._progress.labels += len(table)

    def end(self) -> None:
        """Mark the end of every partition, and wait for all acknowledgements."""
        for topic in (self._topics.impressions, self._topics.labels):
            for partition in range(topic.partitions):
                self._producer.send(
                    topic.name, None, partition=partition, headers={END_HEADER: b""}, rows=0
                )
        self._producer.flush()

    def _write(self, topic: EventTopic, table: pa.Table) -> None:
        if not len(table):
            return
        if topic.format == "arrow":
            self._write_arrow(topic, table)
        elif topic.format == "json":
            self._write_one_each(topic, table, json_events(table))
        else:
            self._write_one_each(topic, table, self._framed[topic.name].write(table))

    def _write_one_each(self, topic: EventTopic, table: pa.Table, events: list[bytes]) -> None:
        keys = table["impression_id"].to_pylist()
        send, name = self._producer.send, topic.name
        broken = iter(self._noise.malformed(events, topic.format == "json"))
        upcoming = next(broken, None)
        for row, (key, event) in enumerate(zip(keys, events, strict=True)):
            if upcoming is not None and upcoming.row == row:
                self._write_malformed(name, upcoming)
                upcoming = next(broken, None)
            send(name, event, key=key.encode())

    def _write_malformed(self, topic: str, malformed: Malformed) -> None:
        self._progress.malformed.append((topic, malformed.value))
        self._producer.send(topic, malformed.value, key=malformed.kind.encode())

    def _write_arrow(self, topic: EventTopic, table: pa.Table) -> None:
        partition = shard_of(table["impression_id"], topic.partitions)
        for number in range(topic.partitions):
            rows = table.filter(pa.array(partition == number))
            if len(rows):
                self._producer.send(
                    topic.name, arrow_events(rows), partition=number, rows=len(rows)
                )


def framed_events(settings: Settings) -> dict[str, FramedEvents]:
    """Writers of the topics whose events need a registered schema, by topic.

    Raises:
        RegistryError: the registry does not answer, or refuses a schema.
    """
    topics = settings.topics
    found = {}
    for topic, name, rules in (
        (topics.impressions, "Impression", impression_rules),
        (topics.labels, "Label", label_rules),
    ):
        if topic.format == "avro" or topic.format == "protobuf":
            found[topic.name] = FramedEvents(
                topic.format,
                rules(settings).schema,
                name,
                topic.name,
                connect(settings.schema_registry),
            )
    return found


def sliced(impressions: pa.Table, labels: pa.Table, step_ms: int) -> Iterator[Slice]:
    """Whole tables cut at multiples of `step_ms`; a label goes with the slice of its own time.

    Args:
        impressions: in any order.
        labels: in any order.
        step_ms: length of a slice.
    """
    impressions = impressions.sort_by("ts_ms")
    labels = labels.sort_by("ts_ms")
    shown_ms = impressions["ts_ms"].to_numpy()
    known_ms = labels["ts_ms"].to_numpy()
    if not len(shown_ms):
        return
    first_ms = int(shown_ms[0]) // step_ms * step_ms
    edges_ms = np.arange(first_ms, int(shown_ms[-1]) + 1 + step_ms, step_ms)
    shown = np.searchsorted(shown_ms, edges_ms).tolist()
    known = np.searchsorted(known_ms, edges_ms).tolist()
    known[0], known[-1] = 0, len(known_ms)
    for i, start_ms in enumerate(edges_ms[:-1].tolist()):
        yield Slice(
            start_ms=start_ms,
            end_ms=start_ms + step_ms,
            impressions=impressions.slice(shown[i], shown[i + 1] - shown[i]),
            labels=labels.slice(known[i], known[i + 1] - known[i]),
        )
