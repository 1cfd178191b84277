"""Bytewax sink for a topic: every acknowledgement before a recovery snapshot counts.

A transactional one shows what it wrote at each recovery snapshot, just before the snapshot counts;
what it wrote behind the last one is never seen.
"""

from __future__ import annotations

from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition

from flows.kafka.client import producer_config
from flows.kafka.producer import WHOLE_BATCHES, BatchProducer
from flows.kafka.transactions import TransactionalProducer, writer_name
from flows.panics import remembering
from flows.settings import Settings, Topic

Outgoing = tuple[bytes | None, bytes, int]
"""Key, value, rows of one message."""


class TopicSink(FixedPartitionedSink[Outgoing, None]):
    """Takes `(str(partition), (key, value, rows))` and writes to that partition of a topic.

    Messages are few and large: each is a request of its own.
    """

    def __init__(self, settings: Settings, topic: Topic, *, transactional: bool = False) -> None:
        """Write to `topic`, which must exist; in transactions, if nobody else writes to it."""
        self._config = producer_config(settings.kafka)
        self._transactional, self._every_s = transactional, settings.das.recovery_every_s
        self._topic = topic
        self._parts = sorted(str(p) for p in range(topic.partitions))
        self._rank = {part: rank for rank, part in enumerate(self._parts)}

    def list_parts(self) -> list[str]:
        """Partition numbers as text."""
        return self._parts

    def part_fn(self, item_key: str) -> int:
        """Position of a partition among the sorted part keys, which Bytewax indexes by."""
        return self._rank[item_key]

    @remembering
    def build_part(
        self, step_id: str, for_part: str, resume_state: None
    ) -> StatefulSinkPartition[Outgoing, None]:
        """Writer of one partition; it keeps no state."""
        return _PartitionWriter(self._producer(for_part), self._topic.name, int(for_part))

    def _producer(self, for_part: str) -> BatchProducer:
        if not self._transactional:
            return BatchProducer(self._config, WHOLE_BATCHES)
        name = writer_name(self._topic.name, for_part)
        return TransactionalProducer(self._config, name, self._every_s)


class _PartitionWriter(StatefulSinkPartition[Outgoing, None]):
    def __init__(self, producer: BatchProducer, topic: str, partition: int) -> None:
        self._producer = producer
        self._topic = topic
        self._partition = partition

    @remembering
    def write_batch(self, values: list[Outgoing]) -> None:
        for key, value, rows in values:
            self._producer.send(self._topic, value, partition=self._partition, key=key, rows=rows)

    @remembering
    def snapshot(self) -> None:
        self._producer.flush()

    def close(self) -> None:
        """Bytewax also calls this where a step failed: nothing that lacks a snapshot may count."""
        self._producer.close()
