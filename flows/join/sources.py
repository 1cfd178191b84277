"""Inputs of DAS: rows split by shard, and behind them, on the same channel, the watermark.

Items are `(str(shard), ("rows", shard, kind, table))`, `(str(shard), ("watermark", shard, source,
ts_ms))` and, live, `(str(shard), (standing, shard, source))`; a source is (kind, partition), see
flows/join/watermarks.py. `(str(shard), ("wake", shard))` says nothing. A partition ends behind the
end mark of its log, or when a stop is requested; the latter sends no watermark but `(str(shard),
("stop", shard))`: nobody reads the partition from there on, so no shard may close what it might
hold.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from datetime import datetime, timedelta, timezone
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition

from flows.events.dead_letters import DeadLetters
from flows.events.reader import EventReader
from flows.join.read_ahead import ReadAhead
from flows.join.seal import Sealed, opened, sealed
from flows.join.segment import in_order, times
from flows.join.watermarks import TEACHER, Source
from flows.kafka.client import client_config
from flows.kafka.consumer import PartitionConsumer
from flows.kafka.lost_offsets import LostOffsets
from flows.kafka.topic_growth import TopicGrowth
from flows.panics import remembering
from flows.records import BEGIN_MS, END_MS, PredictionHeader, decode, prediction_schema, shard_of
from flows.runner import stop_requested
from flows.settings import Settings
from monitoring.metrics import SOURCE_EVENTS, SOURCE_LAG

PAUSES_MS = (2, 5, 10, 20)
"""Waits after one, two, three, and more reads in a row that gave nothing."""
ASK_EVERY_S = 1.0
"""How often a silent partition asks the broker for its end, before it is idle."""
NO_ANSWER = 4
"""So many times longer it waits where the broker did not answer."""
PREDICTION_MESSAGES = 64
"""Read at a time; each holds up to thousands of rows."""

Item: TypeAlias = "tuple[str, tuple[Any, ...]]"
Standing: TypeAlias = Literal["behind", "at_end", "idle"]
"""Of a partition: there may be more; read to its end; so for long."""
EventState: TypeAlias = "tuple[tuple[int, int], bool]"
"""Offset and running maximum; whether the end was read."""
PredictionState: TypeAlias = "tuple[int, dict[int, int]]"
"""Offset; progress of each impressions partition."""


def rows_by_shard(kind: str, table: pa.Table, shards: int) -> list[Item]:
    """An item for each shard that has rows, holding those only, by event time."""
    if not table.num_rows:
        return []
    if shards == 1:
        return [("0", ("rows", 0, kind, in_order([table], "ts_ms")))]
    shard_N = shard_of(table.column("impression_id"), shards).astype(np.int16)
    by_time_N = np.argsort(times(table), kind="stable")
    order_N = by_time_N[np.argsort(shard_N[by_time_N], kind="stable")]
    (batch,) = table.take(order_N).combine_chunks().to_batches()
    items: list[Item] = []
    start = 0
    for shard, rows in enumerate(np.bincount(shard_N, minlength=shards).tolist()):
        if rows:
            mine = compact(batch.slice(start, rows))
            items.append((str(shard), ("rows", shard, kind, mine)))
            start += rows
    return items


def compact(batch: pa.RecordBatch) -> pa.Table:
    """Rows in buffers of their own: a slice would take its whole parent to another process."""
    own = pa.ipc.read_record_batch(batch.serialize(), batch.schema)
    return pa.Table.from_batches([own])


class InputPartition(StatefulSourcePartition[Item, Any]):
    """What the partitions of all inputs share: when to read, when to pause, when to end."""

    def __init__(self, ahead: ReadAhead, shards: int) -> None:
        self._ahead = ahead
        self._num_shards = shards
        self._nothing = 0  # reads in a row that gave nothing
        self._awake: datetime | None = None
        self._stopping = self._has_woken = False

    @remembering
    def next_batch(self) -> list[Item]:
        """Items that have arrived; first in each epoch, one that wakes all shards.

        Bytewax keeps of an epoch the state of who was awake in it, and goes on from the newest that
        its store has before the epoch of a start. A run that dies between writing states and
        committing their epoch leaves some that are not to count. The next run begins with that
        epoch, and so overwrites them: of shards that are awake.
        """
        if self._stopping or self._has_ended():
            raise StopIteration
        if stop_requested():
            self._stopping = True
            return self._to_all("stop")
        if not self._has_woken:
            self._has_woken = True
            return self._to_all("wake")
        items = self._read() if self._ahead.allows(self._watermark_ms()) else self._parked()
        self._nothing = 0 if items else self._nothing + 1
        self._awake = None
        if self._nothing:
            pause_ms = PAUSES_MS[min(self._nothing, len(PAUSES_MS)) - 1]
            self._awake = datetime.now(timezone.utc) + timedelta(milliseconds=pause_ms)
        return items

    def next_awake(self) -> datetime | None:
        """A little later, if there was nothing."""
        return self._awake

    def _kept(self, state: EventState | PredictionState) -> Sealed:
        """What is kept of an epoch, at its end."""
        self._has_woken = False
        return sealed(state)

    def _to_all(self, what: str, *values: Any) -> list[Item]:
        return [(str(s), (what, s, *values)) for s in range(self._num_shards)]

    @abstractmethod
    def _has_ended(self) -> bool: ...

    @abstractmethod
    def _watermark_ms(self) -> int: ...

    @abstractmethod
    def _read(self) -> list[Item]: ...

    def _parked(self) -> list[Item]:
        """Nothing is read while others are far behind; what waits is told all the same."""
        self._tell_lag()
        return []

    def _tell_lag(self) -> None:
        """Set the metric, where there is a broker."""


class EventPartition(InputPartition):
    """A partition of impressions or labels."""

    def __init__(
        self,
        settings: Settings,
        kind: Literal["impressions", "labels"],
        partition: int,
        reader: EventReader,
        ahead: ReadAhead,
        ended: bool,
        growth: TopicGrowth | None = None,
    ) -> None:
        super().__init__(ahead, settings.das.shards)
        self._growth = growth
        self._source: Source = (kind, partition)
        self._idle_s = None if settings.as_of else settings.das.idle_s
        self._reader, self._ended = reader, ended
        self._sent_ms = BEGIN_MS
        self._heard_s = time.monotonic()
        self._ask_s = self._heard_s
        self._standing: Standing = "behind"

    @remembering
    def snapshot(self) -> Sealed:
        """Where to go on, an `EventState`; the dead letters so far are acknowledged."""
        self._reader.flush()
        return self._kept((self._reader.state(), self._ended))

    def close(self) -> None:
        """Leave the topic."""
        self._reader.flush()
        self._reader.close()

    def _has_ended(self) -> bool:
        return self._ended

    def _watermark_ms(self) -> int:
        return self._sent_ms

    def _read(self) -> list[Item]:
        if self._growth is not None:
            self._growth.look()
        batch = self._reader.read()
        if batch is None:
            return self._silence()
        self._ended = batch.ended
        items = rows_by_shard(self._source[0], batch.table, self._num_shards)
        if batch.watermark_ms > self._sent_ms:
            self._sent_ms = batch.watermark_ms
            items += self._to_all("watermark", self._source, batch.watermark_ms)
        if not items:  # all of it was set aside: no sign of life
            return self._silence()
        self._heard_s = time.monotonic()
        if self._standing == "idle":
            self._standing = "at_end"
        return items

    def _tell_lag(self) -> None:
        self._reader.tell_lag()

    def _silence(self) -> list[Item]:
        """Where the wall clock may decide: say how the partition stands when that changes."""
        now_s = time.monotonic()
        if self._idle_s is None or now_s < self._ask_s:
            return []
        before, self._standing = self._standing, self._stands(now_s, self._idle_s)
        return [] if self._standing == before else self._to_all(self._standing, self._source)

    def _stands(self, now_s: float, idle_s: float) -> Standing:
        """Ask the broker, and set when to ask again."""
        at_end = self._reader.caught_up()
        is_idle = at_end and now_s - self._heard_s >= idle_s
        wait_s = idle_s if is_idle else min(idle_s, ASK_EVERY_S)
        self._ask_s = now_s + (wait_s * NO_ANSWER if at_end is None else wait_s)
        if is_idle:
            return "idle"
        return "at_end" if at_end else "behind"


class PredictionPartition(InputPartition):
    """A partition of the teacher's predictions, whose progress counts for its own shards only."""

    def __init__(
        self,
        settings: Settings,
        partition: int,
        consumer: PartitionConsumer,
        ahead: ReadAhead,
        progress_ms: dict[int, int],
    ) -> None:
        super().__init__(ahead, settings.das.shards)
        self._topic, self._partition = settings.topics.fm_predictions, partition
        self._shards = range(partition, settings.das.shards, self._topic.partitions)
        self._schema = prediction_schema(settings)
        self._consumer = consumer
        impressions = range(settings.topics.impressions.partitions)
        self._progress_ms = {p: progress_ms.get(p, BEGIN_MS) for p in impressions}

    def snapshot(self) -> Sealed:
        """Where to go on, a `PredictionState`."""
        return self._kept((self._consumer.position, self._progress_ms))

    def close(self) -> None:
        """Leave the topic."""
        self._consumer.close()

    def _has_ended(self) -> bool:
        return self._watermark_ms() == END_MS

    def _watermark_ms(self) -> int:
        return min(self._progress_ms.values())

    def _read(self) -> list[Item]:
        tables, before_ms = [self._schema.empty_table()], dict(self._progress_ms)
        for message in self._consumer.poll(PREDICTION_MESSAGES):
            rows, header = self._decode(message.value() or b"", message.offset() or 0)
            tables.append(rows)
            p = self._known(header["partition"])
            self._progress_ms[p] = max(self._progress_ms[p], header["progress_ms"])
        rows = pa.concat_tables(tables)
        SOURCE_EVENTS.labels(self._topic.name).inc(rows.num_rows)
        self._tell_lag()
        items = rows_by_shard("predictions", rows, self._num_shards)
        for p, ts_ms in self._progress_ms.items():
            if ts_ms > before_ms[p]:
                source = (TEACHER, p)
                items += [(str(s), ("watermark", s, source, ts_ms)) for s in self._shards]
        return items

    def _tell_lag(self) -> None:
        SOURCE_LAG.labels(self._topic.name, str(self._partition)).set(self._consumer.lag())

    def _known(self, partition: int) -> int:
        if partition not in self._progress_ms:
            raise RuntimeError(
                f"topic {self._topic.name!r}: the teacher speaks of impressions partition "
                f"{partition}, configured are {len(self._progress_ms)}: set "
                "topics.impressions.partitions, and start again"
            )
        return partition

    def _decode(self, value: bytes, offset: int) -> tuple[pa.Table, PredictionHeader]:
        try:
            rows, found = decode(value)
            columns = [rows.column(name) for name in self._schema.names]
            header = PredictionHeader(
                partition=found["partition"], progress_ms=found["progress_ms"]
            )
        except (KeyError, ValueError) as error:
            where = f"topic {self._topic.name!r} partition {self._partition} offset {offset}"
            raise RuntimeError(f"{where}: no predictions of this configuration: {error}") from error
        return pa.Table.from_arrays(columns, schema=self._schema), header


class EventSource(FixedPartitionedSource[Item, Sealed]):
    """All partitions of impressions or labels."""

    def __init__(
        self,
        settings: Settings,
        kind: Literal["impressions", "labels"],
        ahead: ReadAhead,
        dead_letters: DeadLetters | None,
    ) -> None:
        self._settings, self._kind, self._ahead = settings, kind, ahead
        self._dead_letters = dead_letters

    def list_parts(self) -> list[str]:
        """Partition numbers."""
        topics = self._settings.topics
        topic = topics.impressions if self._kind == "impressions" else topics.labels
        return [str(p) for p in range(topic.partitions)]

    @remembering
    def build_part(
        self, step_id: str, for_part: str, resume_state: Sealed | None
    ) -> EventPartition:
        """One partition, from the beginning or from a snapshot."""
        nowhere = (None, False)
        place, ended = nowhere if resume_state is None else opened(resume_state)
        partition = int(for_part)
        settings = self._settings
        reader = EventReader(settings, self._kind, partition, place, self._dead_letters)
        topic = getattr(settings.topics, self._kind)
        growth = TopicGrowth(settings.kafka, topic) if partition == 0 else None
        return EventPartition(settings, self._kind, partition, reader, self._ahead, ended, growth)


class PredictionSource(FixedPartitionedSource[Item, Sealed]):
    """All partitions of the teacher's predictions."""

    def __init__(self, settings: Settings, ahead: ReadAhead) -> None:
        self._settings, self._ahead = settings, ahead

    def list_parts(self) -> list[str]:
        """Partition numbers."""
        return [str(p) for p in range(self._settings.topics.fm_predictions.partitions)]

    @remembering
    def build_part(
        self, step_id: str, for_part: str, resume_state: Sealed | None
    ) -> PredictionPartition:
        """One partition, from the beginning or from a snapshot."""
        nowhere: tuple[None, dict[int, int]] = (None, {})
        offset, progress_ms = nowhere if resume_state is None else opened(resume_state)
        config, partition = client_config(self._settings.kafka), int(for_part)
        topic = self._settings.topics.fm_predictions.name
        lost = LostOffsets.of_inputs(self._settings)
        consumer = PartitionConsumer(config, topic, partition, offset, lost=lost)
        return PredictionPartition(self._settings, partition, consumer, self._ahead, progress_ms)
