"""What shards have written to `examples`; a live run that restarts reads it back.

The search goes backward from the end of the shard's partition, in growing steps, and ends at a
message that begins at or before the number that is looked for. Who died while writing may have left
a transaction open; its successor ends it, and the search waits for that.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from flows.join.emitted import EMITTED, Recall, Search, Written
from flows.kafka.client import client_config
from flows.kafka.consumer import PartitionConsumer
from flows.records import BEGIN_MS, END_MS, decode, floor_ms
from flows.settings import Settings

logger = logging.getLogger(__name__)

FIRST_STEP = 64
"""Messages that the search goes back at first."""
GROWTH = 8
MESSAGES = 64
"""Read at a time."""
SLICE_S = 0.25
"""How long a call may take before the flow goes on with something else."""
PAUSE_S = 0.005
REMIND_S = 15.0
"""How often a search that goes on says so."""
WHY_HIDDEN = (
    "its broker is away, or a transaction is open in it, which the broker ends after its "
    "transaction.timeout.ms"
)


class ExamplesHidden(RuntimeError):
    """What a shard has written was not found; the message says where, and what to do."""

    def __init__(self, settings: Settings, shard: int) -> None:
        topic = settings.topics.examples
        super().__init__(
            f"shard {shard}: topic {topic.name!r} partition {shard % topic.partitions} cannot be "
            f"read to its end: {WHY_HIDDEN}; start again then, nothing is lost"
        )


class ExamplesGone(RuntimeError):
    """A shard's partition was always empty, though its state says otherwise."""

    def __init__(self, settings: Settings, shard: int, total: int) -> None:
        topic = settings.topics.examples
        super().__init__(
            f"topic {topic.name!r} partition {shard % topic.partitions} is empty and always was, "
            f"but shard {shard} has written {total} examples to it: the topic was deleted and "
            f"created anew; examples from number {total} on would leave its readers in front of a "
            "gap; start a new run, or, where teacher.version = 'as_of' and the input topics hold "
            "every event, remove the state folder of the join (state/das): the same examples come "
            "again from number 0"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Extent:
    """What a partition holds: offsets."""

    low: int
    """Of its first message."""
    shown: int
    """Behind the last that no open transaction hides."""
    end: int
    """Behind the last."""


def recall(settings: Settings) -> Recall:
    """Looks for what the topic of `settings` holds now, before this process or its peers write.

    In a replay the log alone decides what was written: it is only checked that the topic is not a
    new one.
    """
    extents = [extent(settings, p) for p in range(settings.topics.examples.partitions)]

    def begin(shard: int, total: int) -> Search | None:
        within = extents[shard % len(extents)]
        if total and not within.end:
            raise ExamplesGone(settings, shard, total)
        return None if settings.as_of else TopicSearch(settings, shard, total, within)

    return begin


def extent(settings: Settings, partition: int) -> Extent:
    """What a partition of `examples` holds now."""
    everything = consume(settings, partition, committed=False)
    shown = consume(settings, partition)
    low, end = everything.bounds
    found = Extent(low=low, shown=min(end, shown.bounds[1]), end=end)
    everything.close()
    shown.close()
    return found


def consume(
    settings: Settings,
    partition: int,
    offset: int | None = None,
    end: int | None = None,
    *,
    committed: bool = True,
) -> PartitionConsumer:
    """Reads a partition of `examples`."""
    config, topic = client_config(settings.kafka), settings.topics.examples.name
    return PartitionConsumer(config, topic, partition, offset, end, committed=committed)


class Found:
    """Rows of one shard from a running number on, as a consumer of the topic accepts them."""

    def __init__(self, settings: Settings, total: int) -> None:
        self._tasks = [task.name for task in settings.tasks]
        self._bucket_ms = settings.das.bucket_ms
        self._end_ms = floor_ms(END_MS, self._bucket_ms)
        self._following, self._through_ms = total, BEGIN_MS
        self._tables = [EMITTED.empty_table()]

    def add(self, table: pa.Table, header: dict[str, Any]) -> None:
        """Take the next message of the shard."""
        table = table.slice(max(0, self._following - header["first"]))
        if table.num_rows:
            self._following = table["number"][-1].as_py() + 1
            self._tables += [self._of_task(table, task) for task in range(len(self._tasks))]
            last_ms = table["closed_ts_ms"][-1].as_py()
            self._through_ms = max(self._through_ms, floor_ms(last_ms, self._bucket_ms))
        mark_ms = header["through_ms"]
        if mark_ms is not None and header["total"] == self._following and mark_ms < self._end_ms:
            self._through_ms = max(self._through_ms, mark_ms)

    def written(self) -> Written:
        """All of it."""
        rows = pa.concat_tables(self._tables)
        return Written(following=self._following, through_ms=self._through_ms, rows=rows)

    def _of_task(self, table: pa.Table, task: int) -> pa.Table:
        name = self._tasks[task]
        rows = table.filter(table[f"mask_{name}"])
        tasks = pa.array(np.full(rows.num_rows, task, dtype=np.int16))
        copied = {n: rows[n] for n in ("ts_ms", "impression_id", "correction")}
        columns = {**copied, "task": tasks, "label": rows[f"label_{name}"]}
        return pa.table(columns, schema=EMITTED)


class TopicSearch:
    """Finds what one shard has written, in a part of its partition."""

    def __init__(self, settings: Settings, shard: int, total: int, within: Extent) -> None:
        self._settings, self._shard, self._total = settings, shard, total
        self._partition = shard % settings.topics.examples.partitions
        self._consumer: PartitionConsumer | None = None
        self._found: Found | None = None
        self._low, self._start, self._end = within.low, within.shown, within.end
        self._step = FIRST_STEP
        self._remind_s = time.monotonic() + REMIND_S

    def __call__(self) -> Written | None:
        """Everything, or None: it is to be called again."""
        deadline = time.monotonic() + SLICE_S
        while not self._look():
            if time.monotonic() > deadline:
                self._remind()
                return None
        return (self._found or Found(self._settings, self._total)).written()

    def _remind(self) -> None:
        if time.monotonic() < self._remind_s:
            return
        self._remind_s = time.monotonic() + REMIND_S
        logger.warning(
            "shard %d closes nothing before topic %r partition %d was read to its end: %s",
            self._shard,
            self._settings.topics.examples.name,
            self._partition,
            WHY_HIDDEN,
        )

    def _look(self) -> bool:
        """Read on; whether everything was found."""
        if self._consumer is None:
            if self._low == self._end:
                return True
            self._start = max(self._low, self._start - self._step)
            self._step *= GROWTH
            self._consumer = consume(self._settings, self._partition, self._start, self._end)
        messages = self._consumer.poll(MESSAGES)
        mine = [m.value() or b"" for m in messages if m.key() == b"%d" % self._shard]
        back = False
        for table, header in map(decode, mine):
            if self._found is None:
                back = header["first"] > self._total and self._start > self._low
                self._found = Found(self._settings, self._total)
            if back:
                break
            self._found.add(table, header)
        at_end = self._consumer.position >= self._end
        back = back or (at_end and self._found is None and self._start > self._low)
        if back or at_end:
            self._consumer.close()
            self._consumer = None
        if back:
            self._found = None
        elif not at_end and not messages:
            time.sleep(PAUSE_S)
        return at_end and not back
