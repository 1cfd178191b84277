"""Puts examples into the one order in which they are learned: bucket, shard, running number.

Messages of `examples` may be cut anywhere, arrive in any interleaving of partitions, and repeat
after a crash of their writer. Rows count once, by their running number; a bucket is ready when the
marks of all shards have passed it. What was handed out is described by one position and one number
a partition and shard, from which another reader goes on with exactly the next row. A message
whose rows do not follow is not taken: a restarted writer may yet fill the gap.

Where the oldest messages are deleted, a shard begins at the number of the first that is there. Its
bucket, too, may have had rows before it, so learning begins with the first bucket that every shard
holds in full: what is handed out is a function of what is retained, and of nothing else.

A live caller may go on without a shard that straggles. Its rows that then find their bucket passed
are counted, not handed out, and its numbers stay consecutive.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from flows.learning.gaps import Gap
from flows.records import BEGIN_MS, END_MS, ExampleHeader, floor_ms

ANY = -1
"""Number of a shard's first message, whatever it is."""

Mask = np.ndarray[Any, np.dtype[np.bool_]]
Integers = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """How far `examples` has been applied."""

    positions: tuple[int, ...]
    """Per partition: offset of the first message that is not fully applied."""
    applied: tuple[int, ...]
    """Per shard: running number of the next row to apply, or ANY."""
    through_ms: int = BEGIN_MS
    """Event time is applied completely up to here."""

    @staticmethod
    def start(partitions: int, shards: int) -> Place:
        """The beginning of the topic."""
        return Place(positions=(0,) * partitions, applied=(0,) * shards)

    @staticmethod
    def oldest(positions: Sequence[int], shards: int) -> Place:
        """The oldest messages that are there; shards stand in partitions as they are written."""
        deleted = [positions[shard % len(positions)] > 0 for shard in range(shards)]
        applied = tuple(ANY if before else 0 for before in deleted)
        return Place(positions=tuple(positions), applied=applied)

    @property
    def is_start(self) -> bool:
        """Whether nothing was applied."""
        return self.through_ms == BEGIN_MS


@dataclass(frozen=True, kw_only=True, slots=True)
class Ready:
    """Complete buckets, in order, and the place behind them."""

    table: pa.Table
    """Rows that the reader keeps, in the order of learning."""
    place: Place

    @property
    def ended(self) -> bool:
        """Whether the log has nothing more."""
        return self.place.through_ms >= END_MS


@dataclass(kw_only=True, slots=True)
class Chunk:
    """Rows of one shard that wait for their bucket to be complete."""

    first: int
    """Running number of the first row."""
    buckets: Integers
    """Start of the bucket of each row, ascending, shape [N]."""
    kept: Mask
    """Which rows the model learns, shape [N]."""
    table: pa.Table
    """The rows kept."""


@dataclass(slots=True)
class Shard:
    """One shard's sequence of rows."""

    following: int
    """Running number that is accepted next, or ANY."""
    mark_ms: int
    applied: int
    first: int = 0
    """Number at which it began, where the first ones were deleted."""
    whole_ms: int = BEGIN_MS
    """No row of a bucket from here on was deleted."""
    chunks: deque[Chunk] = field(default_factory=deque)

    def begin(self, first: int, whole_ms: int) -> None:
        """Begin at a number; rows before it, if there were any, had buckets before `whole_ms`."""
        self.first = self.following = self.applied = first
        self.whole_ms = whole_ms if first else BEGIN_MS


class ExampleReader:
    """Merges the partitions of `examples` for one model."""

    def __init__(
        self,
        place: Place,
        bucket_ms: int,
        schema: pa.Schema,
        keep: Callable[[pa.Table], Mask],
    ) -> None:
        """Start behind `place`; `keep` says which rows the model learns, the others only count."""
        self.through_ms = place.through_ms
        self.begins_ms = BEGIN_MS
        """Rows of earlier buckets are not handed out: some of them may be deleted."""
        self.pending_rows = 0
        self.repeats = 0
        self.passed_over = 0
        """Rows that the model would have learned, had they not come after their bucket."""
        self.gaps: dict[int, Gap] = {}
        """By shard; such a shard does not go on until its gap is filled."""
        self._bucket_ms = bucket_ms
        self._end_ms = floor_ms(END_MS, bucket_ms)
        self._empty = schema.empty_table()
        self._keep = keep
        self._shards = [Shard(number, place.through_ms, number) for number in place.applied]
        self._read = list(place.positions)
        self._unapplied: list[deque[tuple[int, int]]] = [deque() for _ in place.positions]

    def put(self, partition: int, offset: int, table: pa.Table, header: ExampleHeader) -> None:
        """Take one message: its new rows, then its mark; nothing of it if rows before it miss."""
        buckets = table["closed_ts_ms"].to_numpy() // self._bucket_ms * self._bucket_ms
        mark_ms = header["through_ms"]
        ends = [] if mark_ms is None else [self._normal(mark_ms)]
        if table.num_rows:
            ends.append(int(buckets.max()) + self._bucket_ms)
        if ends:
            self._unapplied[partition].append((offset, max(ends)))
        self._read[partition] = offset + 1
        shard = self._shards[header["shard"]]
        if shard.following == ANY:
            if not ends:
                return
            whole_ms = int(buckets[0]) + self._bucket_ms if table.num_rows else ends[0]
            shard.begin(header["first"], whole_ms)
        self._accept(shard, header["first"], table, buckets)
        if mark_ms is not None and header["total"] == shard.following:
            shard.mark_ms = max(shard.mark_ms, self._normal(mark_ms))
        self._note_gap(partition, offset, header, shard.following)

    def take(self, without: Collection[int] = ()) -> Ready | None:
        """What has become complete since the last call; None: nothing.

        Args:
            without: shards that are not waited for; only the end of the log waits for all.
        """
        through_ms = self._least(without)
        if through_ms <= self.through_ms or (without and through_ms >= END_MS):
            return None
        if self.through_ms == BEGIN_MS:
            self._begin(without)
            if through_ms < self.begins_ms:
                return None
        self.through_ms = through_ms
        parts: list[pa.Table] = []
        buckets: list[Integers] = []
        for shard in self._shards:
            self._release(shard, through_ms, parts, buckets)
        table = self._empty
        if parts:
            table = pa.concat_tables(parts).combine_chunks()
            # Stable: rows stand shard by shard, in running order, already.
            order = np.argsort(np.concatenate(buckets), kind="stable")
            table = table.take(pa.array(order))
        return Ready(table=table, place=self.place())

    def place(self) -> Place:
        """The place behind all rows handed out."""
        for queue in self._unapplied:
            while queue and queue[0][1] <= self.through_ms:
                queue.popleft()
        return Place(
            positions=tuple(
                queue[0][0] if queue else read
                for queue, read in zip(self._unapplied, self._read, strict=True)
            ),
            applied=tuple(shard.applied for shard in self._shards),
            through_ms=self.through_ms,
        )

    def nothing(self) -> Ready:
        """No rows, at the place that was reached."""
        return Ready(table=self._empty, place=self.place())

    def firsts(self) -> list[int]:
        """Per shard: number of its first message, where those before it are deleted; else 0."""
        return [shard.first for shard in self._shards]

    def marks(self) -> list[int]:
        """Per shard: event time (ms) that it has completed."""
        return [shard.mark_ms for shard in self._shards]

    def behind(self, without: Collection[int] = ()) -> Sequence[int]:
        """Shards that hold the others back."""
        least = self._least(without)
        return [i for i, mark_ms in enumerate(self.marks()) if mark_ms == least]

    def _least(self, without: Collection[int]) -> int:
        return min(mark_ms for i, mark_ms in enumerate(self.marks()) if i not in without)

    def _normal(self, mark_ms: int) -> int:
        return END_MS if mark_ms >= self._end_ms else mark_ms

    def _accept(self, shard: Shard, first: int, table: pa.Table, buckets: Integers) -> None:
        known = shard.following - first
        if known < 0:
            return
        self.repeats += min(known, table.num_rows)
        if known >= table.num_rows:
            return
        table, buckets = table.slice(known), buckets[known:]
        passed = int(np.searchsorted(buckets, max(self.through_ms, self.begins_ms)))
        if passed:
            self._pass_over(shard, table.slice(0, passed))
            table, buckets = table.slice(passed), buckets[passed:]
        if not len(buckets):
            return
        kept = self._keep(table)
        if not kept.all():
            table = table.filter(pa.array(kept))
        chunk = Chunk(first=shard.following, buckets=buckets, kept=kept, table=table)
        shard.chunks.append(chunk)
        shard.following += len(buckets)
        self.pending_rows += len(buckets)

    def _note_gap(self, partition: int, offset: int, header: ExampleHeader, following: int) -> None:
        """Keep what is missing before a message, until it is filled."""
        shard, first, total = header["shard"], header["first"], header["total"] or 0
        found = first if first > following else total
        if shard in self.gaps:
            found, offset = self.gaps[shard].found, self.gaps[shard].offset
        if found <= following:
            self.gaps.pop(shard, None)
            return
        self.gaps[shard] = Gap(
            shard=shard, expected=following, found=found, partition=partition, offset=offset
        )

    def _begin(self, without: Collection[int]) -> None:
        """Let learning begin with the first bucket that all shards hold in full."""
        whole = [shard.whole_ms for i, shard in enumerate(self._shards) if i not in without]
        self.begins_ms = max(self.begins_ms, *whole)
        for shard in self._shards:
            self._release(shard, self.begins_ms, [], [])

    def _pass_over(self, shard: Shard, table: pa.Table) -> None:
        assert not shard.chunks  # their buckets are not passed, and come after these
        if self.through_ms > BEGIN_MS:
            self.passed_over += int(self._keep(table).sum())
        shard.following += table.num_rows
        shard.applied = shard.following

    def _release(
        self, shard: Shard, limit_ms: int, parts: list[pa.Table], buckets: list[Integers]
    ) -> None:
        """Move rows of buckets before `limit_ms` to `parts`, and their buckets to `buckets`."""
        while shard.chunks:
            chunk = shard.chunks[0]
            num = int(np.searchsorted(chunk.buckets, limit_ms))
            if num == 0:
                return
            num_kept = int(chunk.kept[:num].sum())
            if num_kept:
                parts.append(chunk.table.slice(0, num_kept))
                buckets.append(chunk.buckets[:num][chunk.kept[:num]])
            shard.applied = chunk.first + num
            self.pending_rows -= num
            if num < len(chunk.buckets):
                shard.chunks[0] = Chunk(
                    first=chunk.first + num,
                    buckets=chunk.buckets[num:],
                    kept=chunk.kept[num:],
                    table=chunk.table.slice(num_kept),
                )
                return
            shard.chunks.popleft()
