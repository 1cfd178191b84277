"""Reads `examples` as a consumer takes them: what a restart wrote again is dropped."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from confluent_kafka import Message

from flows.kafka.client import client_config
from flows.kafka.consumer import PartitionConsumer
from flows.records import decode, example_schema
from flows.settings import Settings, Topic


@dataclass(frozen=True, kw_only=True, slots=True)
class Accepted:
    """All examples of a topic."""

    table: pa.Table
    """By shard and running number."""
    repeats: int
    """Rows that were there before, equal to them."""

    @property
    def digest(self) -> str:
        """Of the rows, in order, bit for bit."""
        return table_digest(self.table)


def messages(settings: Settings, topic: Topic) -> Iterator[Message]:
    """Everything that a topic holds, partition by partition."""
    for partition in range(topic.partitions):
        consumer = PartitionConsumer(client_config(settings.kafka), topic.name, partition, None)
        while not consumer.at_end():
            yield from consumer.poll(1024)
        consumer.close()


def accepted_examples(settings: Settings) -> Accepted:
    """Examples that are accepted, by shard and running number.

    Raises:
        ValueError: a running number is missing, or came again with another content.
    """
    schema = example_schema(settings)
    tables = [schema.empty_table()]
    for message in messages(settings, settings.topics.examples):
        if message.value():
            table, _ = decode(message.value() or b"")
            tables.append(table.cast(schema))
    rows = pa.concat_tables(tables).combine_chunks()
    shard, number = rows["shard"].to_numpy(), rows["number"].to_numpy()
    order = np.lexsort((number, shard))
    pairs = np.stack([shard[order], number[order]], axis=1)
    first = np.ones(len(order), dtype=bool)
    first[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
    refuse_gaps(pairs[first])
    kept = rows.take(pa.array(order[first]))
    repeated = kept.take(pa.array((np.cumsum(first) - 1)[~first]))
    if not repeated.equals(rows.take(pa.array(order[~first]))):
        raise ValueError(f"among {len(repeated)} repeated examples some have another content")
    return Accepted(table=kept, repeats=len(repeated))


def refuse_gaps(pairs: np.ndarray[tuple[int, int], np.dtype[np.int64]]) -> None:
    """Raise ValueError unless the numbers of each shard are 0, 1, ..., given (shard, number)."""
    for shard in np.unique(pairs[:, 0]):
        numbers = pairs[pairs[:, 0] == shard, 1]
        if not np.array_equal(numbers, np.arange(len(numbers))):
            raise ValueError(f"shard {shard}: examples are missing among {len(numbers)}")


def table_digest(table: pa.Table) -> str:
    """Digest of a table's rows, whatever its chunks."""
    digest = hashlib.sha256()
    for column in table.column_names:
        for start in range(0, len(table), 65_536):
            values = table[column].slice(start, 65_536).to_pylist()
            digest.update(repr((column, values)).encode())
    return digest.hexdigest()
