"""Reads one partition of impressions or labels: decoded, judged, with its watermark.

A source keeps `state()` in its checkpoint and takes it up again after a restart. What is rejected
or late goes to the dead letters; `flush()` before a checkpoint has them acknowledged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from confluent_kafka import Message

from flows.events.dead_letters import REPLAY_OF, DeadLetters
from flows.events.decoding import EventDecoder, Rejected
from flows.events.lateness import Lateness
from flows.events.rules import EventRules, impression_rules, label_rules
from flows.kafka.client import client_config
from flows.kafka.consumer import PartitionConsumer
from flows.kafka.headers import headers_of
from flows.kafka.lost_offsets import LostOffsets
from flows.records import BEGIN_MS, END_HEADER, END_MS
from flows.settings import EventTopic, Settings
from monitoring.metrics import REJECTED, SOURCE_EVENTS, SOURCE_LAG, SOURCE_WATERMARK

Times = np.ndarray[Any, np.dtype[np.int64]]

ROWS_AN_ARROW_MESSAGE = 512
"""Expected, so that a batch of Arrow messages holds about as many rows as one of JSON."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EventBatch:
    """What one read of a partition gave."""

    partition: int
    table: pa.Table
    """Rows on time, in the order of the log, with ADDRESS."""
    watermark_ms: int
    """Behind these rows; END_MS after the end mark."""
    position: int
    """Offset of the next message."""
    ended: bool
    """The log says that it has no more."""


class EventReader:
    """One partition of an event topic."""

    def __init__(
        self,
        settings: Settings,
        which: Literal["impressions", "labels"],
        partition: int,
        state: tuple[int, int] | None,
        dead_letters: DeadLetters | None,
        end: int | None = None,
    ) -> None:
        """Go on from `state`.

        Args:
            settings: of the run.
            which: topic.
            partition: its number.
            state: of an earlier reader; None: the oldest event that is retained.
            dead_letters: None: rejected and late events are not written (another process does).
            end: no event from this offset on is read, None: there is no such end.

        Raises:
            BrokerUnreachable: no broker answers.
            SettingsError: the Schema Registry cannot be used as configured.
            OffsetLost: the offset of `state` is no longer retained, and is not to be skipped.
        """
        self._topic: EventTopic = getattr(settings.topics, which)
        self._partition = partition
        self._dead_letters = dead_letters
        self._rules = rules_of(settings, which)
        self._decoder = EventDecoder(
            self._rules.schema, self._topic.format, self._rules.faults, settings.schema_registry
        )
        offset, running_max_ms = state or (None, BEGIN_MS)
        self._lateness = Lateness(self._topic.lateness_ms, running_max_ms)
        self._max_messages = settings.das.max_batch
        if self._topic.format == "arrow":
            self._max_messages = max(1, self._max_messages // ROWS_AN_ARROW_MESSAGE)
        self._ended = running_max_ms == END_MS
        self._announce_end = self._ended
        self._position = offset or 0
        self._consumer: PartitionConsumer | None = None
        if not self._ended:
            self._consumer = PartitionConsumer(
                client_config(settings.kafka),
                self._topic.name,
                partition,
                offset,
                end,
                lost=LostOffsets.of_inputs(settings),
            )
            self._position = self._consumer.position

    def read(self) -> EventBatch | None:
        """Whatever has arrived; None if nothing has. Nothing follows a batch that has `ended`.

        A reader that resumes behind the end mark says so once, with an empty batch.
        """
        if self._consumer is None or self._ended:
            announce, self._announce_end = self._announce_end, False
            return self._batch(self._on_time([])) if announce else None
        messages = self._consumer.poll(self._max_messages)
        if not messages and self._position == self._consumer.position:
            self.tell_lag()
            return None
        self._position = self._consumer.position
        end = end_of(messages)
        if end is not None:
            self._position = (messages[end].offset() or 0) + 1
        table = self._on_time(messages[:end])
        if end is not None:
            self._ended = True
            self._lateness.end()
        return self._batch(table)

    def state(self) -> tuple[int, int]:
        """Offset of the next message and running maximum of event time, for a checkpoint."""
        return self._position, self._lateness.running_max_ms

    def caught_up(self) -> bool | None:
        """Whether the partition was read to its end; None if the broker does not say so now."""
        return self._ended or self._consumer is None or self._consumer.at_end_now()

    def tell_lag(self) -> None:
        """Set the metric to what waits to be read."""
        lag = 0 if self._ended or self._consumer is None else self._consumer.lag()
        SOURCE_LAG.labels(self._topic.name, str(self._partition)).set(lag)

    def flush(self) -> None:
        """Wait until the dead letters are acknowledged; before a checkpoint.

        Raises:
            DeliveryError: one was not.
        """
        if self._dead_letters is not None:
            self._dead_letters.flush()

    def close(self) -> None:
        """Leave the broker."""
        if self._consumer is not None:
            self._consumer.close()

    def _batch(self, table: pa.Table) -> EventBatch:
        labels = (self._topic.name, str(self._partition))
        watermark_ms = self._lateness.watermark_ms
        if watermark_ms not in (BEGIN_MS, END_MS):
            SOURCE_WATERMARK.labels(*labels).set(watermark_ms / 1000)
        self.tell_lag()
        return EventBatch(
            partition=self._partition,
            table=table,
            watermark_ms=watermark_ms,
            position=self._position,
            ended=self._ended,
        )

    def _on_time(self, messages: list[Message]) -> pa.Table:
        decoded = self._decoder.decode(messages)
        SOURCE_EVENTS.labels(self._topic.name).inc(decoded.table.num_rows + len(decoded.rejected))
        ts_N = decoded.table["ts_ms"].to_numpy()
        past_N = ts_N <= newest_ms(messages, self._topic.max_ahead_ms)[decoded.origin_N]
        good_N = past_N.copy()
        good_N[past_N] = self._lateness.judge(ts_N[past_N])
        self._set_aside(decoded.rejected)
        self._set_aside(self._decoder.reject(decoded, ~past_N, "ts_in_future"))
        self._set_aside(self._decoder.reject(decoded, past_N & ~good_N, "late"))
        table = decoded.table if good_N.all() else decoded.table.filter(pa.array(good_N))
        return self._rules.finish(table)

    def _set_aside(self, found: Sequence[Rejected]) -> None:
        for rejected in found:
            REJECTED.labels(self._topic.name, rejected.reason).inc()
            if self._dead_letters is not None:
                self._write(self._dead_letters, rejected)

    def _write(self, letters: DeadLetters, rejected: Rejected) -> None:
        letters.put(
            rejected.value,
            self._topic.name,
            self._partition,
            rejected.message.offset() or 0,
            rejected.reason,
            rejected.index,
            rejected.message.key(),
            first_place(rejected.message),
        )


def rules_of(settings: Settings, which: Literal["impressions", "labels"]) -> EventRules:
    """What an event of a topic must fulfil."""
    return impression_rules(settings) if which == "impressions" else label_rules(settings)


def newest_ms(messages: Sequence[Message], ahead_ms: int) -> Times:
    """Newest event time that each message may hold, by its own timestamp, shape [M].

    Kafka's timestamp is in the log, so a replay comes to the same; one without sets no bound.
    """
    stamps = map(itemgetter(1), map(Message.timestamp, messages))
    stamp_M = np.fromiter(stamps, np.int64, len(messages))
    return np.where(stamp_M > 0, np.minimum(stamp_M, END_MS) + ahead_ms, END_MS)


def first_place(message: Message) -> bytes | None:
    """Where an event that was sent again stood first; None for any other."""
    found = headers_of(message).get(REPLAY_OF)
    return found if isinstance(found, bytes) else None


def end_of(messages: Sequence[Message]) -> int | None:
    """Position of the message that is the end mark of a finite log, if one is."""
    if None not in map(Message.value, messages):
        return None
    return next((i for i, message in enumerate(messages) if is_end(message)), None)


def is_end(message: Message) -> bool:
    """Whether a message is the end mark of a finite log."""
    if message.value() is not None:
        return False
    return END_HEADER in headers_of(message)
