"""Where the examples of a backfill go: another topic, or files that wait to be put in order.

Either keeps in its snapshot what it has accepted, so that after a crash numbers go on where they
were, and every row is counted once.
"""

from __future__ import annotations

from abc import abstractmethod
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition

from flows.backfill.plan import Plan
from flows.backfill.rows import ShardRows
from flows.join.recovery import WAY_OUT, RecoveryUnreadable
from flows.join.seal import Sealed, opened, sealed
from flows.kafka.client import producer_config
from flows.kafka.producer import WHOLE_BATCHES, BatchProducer
from flows.kafka.sink import Outgoing
from flows.records import END_MS, ExampleHeader, encode, example_schema
from flows.settings import Settings

STAGED_ROWS = 65_536
"""Of one shard in memory; more go to a file at once."""
Saved = dict[int, dict[str, Any]]
"""State of each shard."""


class BackfillSink(FixedPartitionedSink[Outgoing, Sealed]):
    """Takes `(str(partition), (shard, message, rows))` of the join."""

    def __init__(self, settings: Settings, plan: Plan) -> None:
        self._settings, self._plan = settings, plan
        self._parts = sorted(str(p) for p in range(settings.topics.examples.partitions))
        self._rank = {part: rank for rank, part in enumerate(self._parts)}
        self.shards: dict[int, ShardRows] = {}
        """What each shard has come to."""

    def list_parts(self) -> list[str]:
        """Partition numbers as text."""
        return self._parts

    def part_fn(self, item_key: str) -> int:
        """Position of a partition among the sorted part keys, which Bytewax indexes by."""
        return self._rank[item_key]

    def build_part(
        self, step_id: str, for_part: str, resume_state: Sealed | None
    ) -> StatefulSinkPartition[Outgoing, Sealed]:
        """Writer of one partition."""
        saved: Saved = {} if resume_state is None else opened(resume_state)
        topic = self._settings.topics.examples
        mine = range(int(for_part), self._settings.das.shards, topic.partitions)
        shards = {s: ShardRows(self._settings, self._plan, saved.get(s)) for s in mine}
        self.shards.update(shards)
        return self._writer(int(for_part), shards, saved)

    @abstractmethod
    def _writer(
        self, partition: int, shards: dict[int, ShardRows], saved: Saved
    ) -> StatefulSinkPartition[Outgoing, Sealed]: ...


class ExampleTopic(BackfillSink):
    """Writes to the topic `examples` of its settings."""

    def end(self) -> None:
        """Mark the end of every shard: the topic has nothing more."""
        topic = self._settings.topics.examples
        producer = BatchProducer(producer_config(self._settings.kafka))
        nothing = example_schema(self._settings).empty_table()
        for shard, rows in sorted(self.shards.items()):
            header = ExampleHeader(
                shard=shard, first=rows.total, through_ms=END_MS, total=rows.total
            )
            message, partition = encode(nothing, header), shard % topic.partitions
            producer.send(topic.name, message, partition=partition, key=str(shard).encode(), rows=0)
        producer.flush()

    def _writer(
        self, partition: int, shards: dict[int, ShardRows], saved: Saved
    ) -> StatefulSinkPartition[Outgoing, Sealed]:
        producer = BatchProducer(producer_config(self._settings.kafka), WHOLE_BATCHES)
        return _TopicWriter(producer, self._settings.topics.examples.name, partition, shards)


class ExampleFiles(BackfillSink):
    """Writes Arrow files of one shard each, `SHARD-NUMBER.arrow`, to a folder."""

    def __init__(self, settings: Settings, plan: Plan, folder: Path) -> None:
        super().__init__(settings, plan)
        self._folder = folder

    def _writer(
        self, partition: int, shards: dict[int, ShardRows], saved: Saved
    ) -> StatefulSinkPartition[Outgoing, Sealed]:
        self._folder.mkdir(parents=True, exist_ok=True)
        schema = example_schema(self._settings)
        known = {shard: list(saved[shard]["files"]) for shard in saved}
        for name in chain.from_iterable(known.values()):
            if not (self._folder / name).exists():
                raise RecoveryUnreadable(f"{self._folder / name} is gone; {WAY_OUT}")
        for path in self._folder.glob("*.arrow"):
            shard = int(path.stem.partition("-")[0])
            if shard in shards and path.name not in known.get(shard, ()):
                path.unlink()  # of a time that never was
        return _FileWriter(self._folder, schema, shards, known)


class _TopicWriter(StatefulSinkPartition[Outgoing, Sealed]):
    def __init__(
        self, producer: BatchProducer, topic: str, partition: int, shards: dict[int, ShardRows]
    ) -> None:
        self._producer, self._topic, self._partition = producer, topic, partition
        self._shards = shards

    def write_batch(self, values: list[Outgoing]) -> None:
        for key, value, _ in values:
            mine = self._shards[int(key or b"")]
            rows, header = mine.take(value)
            message = encode(rows, header)
            mine.add("bytes", len(message))
            self._producer.send(
                self._topic, message, partition=self._partition, key=key, rows=rows.num_rows
            )

    def snapshot(self) -> Sealed:
        self._producer.flush()
        return sealed({shard: rows.save() for shard, rows in self._shards.items()})

    def close(self) -> None:
        self._producer.flush()


class _FileWriter(StatefulSinkPartition[Outgoing, Sealed]):
    def __init__(
        self,
        folder: Path,
        schema: pa.Schema,
        shards: dict[int, ShardRows],
        files: dict[int, list[str]],
    ) -> None:
        self._folder, self._schema, self._shards = folder, schema, shards
        self._files = {shard: files.get(shard, []) for shard in shards}
        self._waiting: dict[int, list[pa.Table]] = {shard: [] for shard in shards}

    def write_batch(self, values: list[Outgoing]) -> None:
        for key, value, _ in values:
            shard = int(key or b"")
            rows, _ = self._shards[shard].take(value)
            if rows.num_rows:
                self._waiting[shard].append(rows.cast(self._schema))
            if sum(table.num_rows for table in self._waiting[shard]) >= STAGED_ROWS:
                self._write(shard)

    def snapshot(self) -> Sealed:
        for shard in self._shards:
            self._write(shard)
        states = {s: {**r.save(), "files": list(self._files[s])} for s, r in self._shards.items()}
        return sealed(states)

    def close(self) -> None:
        """Nothing: the last snapshot holds everything."""

    def _write(self, shard: int) -> None:
        if not self._waiting[shard]:
            return
        table = pa.concat_tables(self._waiting[shard])
        self._waiting[shard] = []
        name = f"{shard}-{table['number'][0].as_py():012d}.arrow"
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with pa.ipc.new_file(str(self._folder / name), self._schema, options=options) as writer:
            writer.write_table(table.combine_chunks())
        self._files[shard].append(name)
