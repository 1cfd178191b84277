"""Immutable Arrow segments: what a shard waits with, in memory until a snapshot, then in files.

A segment is sorted, so rows of a time are a slice of it, without a copy. Rows that arrive and are
forgotten between two snapshots mostly never touch the disk, unless they are many. Shortly before a
snapshot a thread begins to write them, so that the snapshot itself has little to do. Files are
mapped, so the state may exceed memory. Segments are merged eight at a time, like the digits of a
number to the base 8, so they stay few and a row is copied rarely.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import TypedDict

import numpy as np
import pyarrow as pa

from flows.join.segment import File, Segment, Times, in_order, times
from flows.join.segment_folder import SegmentFolder, beside
from flows.records import BEGIN_MS

MAX_FRESH_BYTES = 96 << 20
"""Of rows in memory; more are written to a file before the next snapshot."""
MAX_MERGED_BYTES = 64 << 20
"""What is merged is smaller in sum: it is in memory until it is written."""
MERGED = 8
"""Segments of one size that become one of the next size."""


class StoreState(TypedDict):
    """What a snapshot holds of one kind of rows."""

    floor_ms: int
    files: list[File]


class SegmentStore:
    """Rows of one kind, forgotten by event time."""

    def __init__(
        self, folder: SegmentFolder, kind: str, schema: pa.Schema, order: str = "ts_ms"
    ) -> None:
        """Begin with no rows.

        Args:
            folder: of the shard.
            kind: name of the files.
            schema: has a column `ts_ms`.
            order: column by which each segment is sorted; `between`, `at`, `count` and
                `oldest_since` are for stores sorted by `ts_ms`.
        """
        self._folder, self._kind, self._schema, self._order = folder, kind, schema, order
        self._empty = schema.empty_table()
        self._written: list[Segment] = []
        self._leaving: list[Segment] = []  # in memory; they are being written
        self._fresh: list[Segment] = []
        self._writing: Future[list[Segment]] | None = None
        self.floor_ms = BEGIN_MS
        """Rows before this are forgotten."""
        folder.add(self.spill)

    def append(self, table: pa.Table) -> None:
        """Take rows in; those before the floor are not seen again."""
        self._settle(wait=False)
        if not table.num_rows:
            return
        columns = [table.column(name) for name in self._schema.names]
        rows = pa.Table.from_arrays(columns, schema=self._schema)
        self._fresh.append(Segment.of(in_order([rows], self._order)))
        while num := mergeable(self._fresh):
            self._fresh[-num:] = self._merged(self._fresh[-num:], self.floor_ms)
        if sum(segment.num_bytes for segment in self._fresh) > MAX_FRESH_BYTES:
            self._write()

    def between(self, low_ms: int, high_ms: int) -> pa.Table:
        """Rows with low_ms <= ts_ms < high_ms that are not forgotten.

        Rows of the same time come in the order in which they arrived.
        """
        low_ms = max(low_ms, self.floor_ms)
        found = []
        for segment in self._segments:
            start, end = segment.rows(low_ms, high_ms)
            if start < end:
                found.append(segment.table.slice(start, end - start))
        return pa.concat_tables(found) if found else self._empty

    def at(self, ts_N: Times) -> pa.Table:
        """Rows of some event times, in no order.

        Args:
            ts_N: ascending, each once, shape [N].
        """
        found: list[pa.Table] = []
        for segment in self._segments:
            low_ms = max(segment.first_ms, self.floor_ms)
            start, end = np.searchsorted(ts_N, (low_ms, segment.last_ms + 1))
            if start < end:
                found.append(segment.table.take(pa.array(segment.rows_at(ts_N[start:end]))))
        return pa.concat_tables(found) if found else self._empty

    def count(self, low_ms: int, high_ms: int) -> int:
        """Number of rows that `between` returns."""
        low_ms = max(low_ms, self.floor_ms)
        bounds = [segment.rows(low_ms, high_ms) for segment in self._segments]
        return sum(end - start for start, end in bounds)

    def tables(self) -> list[pa.Table]:
        """All segments; they may hold rows that are forgotten."""
        return [segment.table for segment in self._segments]

    def forget(self, before_ms: int) -> None:
        """Raise the floor."""
        self.floor_ms = max(self.floor_ms, before_ms)
        self._written = self._kept(self._written)
        self._leaving = self._kept(self._leaving)
        self._fresh = self._kept(self._fresh)

    def spill(self) -> None:
        """Begin to write what is in memory; meanwhile it is read from there."""
        self._settle(wait=False)
        if self._writing is None and self._fresh:
            self._leaving, self._fresh = self._fresh, []
            self._writing = beside().submit(self._joined, self._written, self._leaving)

    def save(self) -> StoreState:
        """Write what is in memory; the files that together hold the store."""
        self._write()
        return StoreState(floor_ms=self.floor_ms, files=[s.file for s in self._written if s.file])

    def restore(self, state: StoreState) -> None:
        """Go on from what `save` returned."""
        self.floor_ms = state["floor_ms"]
        self._written = [self._folder.open(file) for file in state["files"]]
        self._fresh = []

    @property
    def num_bytes(self) -> int:
        """Size of the files."""
        return sum(s.file["size"] for s in self._written if s.file)

    def oldest_since(self, low_ms: int) -> int | None:
        """Smallest ts_ms >= low_ms that is not forgotten."""
        found = []
        for segment in self._segments:
            start, end = segment.rows(max(low_ms, self.floor_ms), segment.last_ms + 1)
            if start < end:
                found.append(segment.table.column("ts_ms")[start].as_py())
        return min(found, default=None)

    @property
    def _segments(self) -> list[Segment]:
        return [*self._written, *self._leaving, *self._fresh]

    def _write(self) -> None:
        """Move the rows in memory to files."""
        self._settle(wait=True)
        self._written = self._joined(self._written, self._fresh)
        self._fresh = []

    def _settle(self, wait: bool) -> None:
        """Take over what `spill` began, if it is done or is to be waited for."""
        if self._writing is not None and (wait or self._writing.done()):
            self._written = self._kept(self._writing.result())
            self._leaving, self._writing = [], None

    def _joined(self, written: list[Segment], fresh: list[Segment]) -> list[Segment]:
        """Files that hold all rows of files and of segments in memory, small ones merged."""
        floor_ms = self.floor_ms  # the join may raise it meanwhile
        for segment in self._merged(fresh, floor_ms):
            joined = [*written, segment]
            while num := mergeable(joined):
                joined[-num:] = self._merged(joined[-num:], floor_ms)
            return [*joined[:-1], self._folder.write(self._kind, joined[-1].table)]
        return written

    def _kept(self, segments: list[Segment]) -> list[Segment]:
        """Those that have rows which are not forgotten."""
        return [s for s in segments if s.last_ms >= self.floor_ms]

    def _merged(self, segments: list[Segment], floor_ms: int) -> list[Segment]:
        """One segment of the rows of several from `floor_ms` on; none if there are none.

        Files are checked before, else what was damaged on the way would get a checksum of its own.
        """
        for segment in segments:
            if segment.file:
                self._folder.check(segment.file)
        tables = [live(segment.table, floor_ms) for segment in segments]
        tables = [table for table in tables if table.num_rows]
        return [Segment.of(in_order(tables, self._order))] if tables else []


def mergeable(segments: list[Segment]) -> int:
    """How many of the newest segments should become one: none, or MERGED and more."""
    num = num_bytes = 0
    for segment in reversed(segments):
        num_bytes += segment.num_bytes
        if segment.level > segments[-1].level or num_bytes >= MAX_MERGED_BYTES:
            break
        num += 1
    return num if num >= MERGED else 0


def live(table: pa.Table, floor_ms: int) -> pa.Table:
    """Rows from `floor_ms` on."""
    keep_N = times(table) >= floor_ms
    return table if keep_N.all() else table.filter(pa.array(keep_N))
