"""Immutable Arrow segments: what a shard waits with, in memory until a snapshot, then in files.

A segment is sorted, so rows of a time are a slice of it, without a copy. Rows that arrive and are
forgotten between two snapshots mostly never touch the disk, unless they are many. Shortly before a
snapshot a thread begins to write them, so that the snapshot itself has little to do. Files are
mapped, so the state may exceed memory. Segments are merged eight at a time, like the digits of a
number to the base 8, so they stay few and a row is copied rarely.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any, Literal, TypedDict

import numpy as np
import pyarrow as pa
import xxhash

from flows.join.recovery import WAY_OUT, StateFull
from flows.records import BEGIN_MS

MAX_FRESH_BYTES = 96 << 20
"""Of rows in memory; more are written to a file before the next snapshot."""
MAX_MERGED_BYTES = 64 << 20
"""What is merged is smaller in sum: it is in memory until it is written."""
MERGED = 8
"""Segments of one size that become one of the next size."""
KEPT_SNAPSHOTS = 2
"""Earlier snapshots whose files stay: the newest may not be committed yet."""

Times = np.ndarray[Any, np.dtype[np.int64]]
SIDES: tuple[Literal["left"], Literal["right"]] = ("left", "right")


class SegmentError(RuntimeError):
    """A file of the state is missing or damaged; the message names it."""


class File(TypedDict):
    """A segment as a snapshot names it."""

    name: str
    size: int
    xxh64: str


class StoreState(TypedDict):
    """What a snapshot holds of one kind of rows."""

    floor_ms: int
    files: list[File]


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """Sorted rows that never change."""

    table: pa.Table
    first_ms: int
    """Smallest `ts_ms`."""
    last_ms: int
    """Largest `ts_ms`."""
    num_bytes: int
    """Of the file, or in memory."""
    file: File | None
    """None: in memory only."""

    @classmethod
    def of(cls, table: pa.Table, file: File | None = None) -> Segment:
        """A segment of at least one row."""
        ts_N = times(table)
        return cls(
            table=table,
            first_ms=int(ts_N.min()),
            last_ms=int(ts_N.max()),
            num_bytes=file["size"] if file else int(table.nbytes),
            file=file,
        )

    @property
    def level(self) -> int:
        """How many digits its number of rows has to the base MERGED."""
        return (int(self.table.num_rows).bit_length() + 2) // 3

    def rows(self, low_ms: int, high_ms: int) -> tuple[int, int]:
        """Where its rows with low_ms <= ts_ms < high_ms begin and end, if sorted by time."""
        if low_ms <= self.first_ms and self.last_ms < high_ms:
            return 0, self.table.num_rows
        if high_ms <= self.first_ms or self.last_ms < low_ms:
            return 0, 0
        start, end = np.searchsorted(times(self.table), (low_ms, high_ms))
        return int(start), int(max(start, end))

    def rows_at(self, ts_N: Times) -> Times:
        """Its rows of some event times, if sorted by time."""
        start_N, end_N = (np.searchsorted(times(self.table), ts_N, side) for side in SIDES)
        num_N = end_N - start_N
        before_N = np.cumsum(num_N) - num_N
        return np.repeat(start_N - before_N, num_N) + np.arange(num_N.sum())


def times(table: pa.Table) -> Times:
    """Column `ts_ms`, shape [N]."""
    return np.asarray(table.column("ts_ms").to_numpy(), dtype=np.int64)


def in_order(tables: list[pa.Table], order: str) -> pa.Table:
    """Rows of tables in one chunk, sorted by a column; where that is equal, as they come."""
    table = pa.concat_tables(tables)
    key_N = table.column(order).to_numpy()
    if (key_N[1:] >= key_N[:-1]).all():
        return table.combine_chunks()
    return table.take(np.argsort(key_N, kind="stable")).combine_chunks()


@cache
def beside() -> ThreadPoolExecutor:
    """The thread of this process that writes segments while others are joined."""
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="segments")


def wait_for_writes() -> None:
    """Wait until that thread has written all that it was given."""
    beside().submit(lambda: None).result()


class SegmentFolder:
    """The files of one shard."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stores: list[SegmentStore] = []
        self._naming = Lock()
        self._files: set[str] = set()
        self._earlier: deque[set[str]] = deque(maxlen=KEPT_SNAPSHOTS)
        self._number = 0

    def write(self, kind: str, table: pa.Table) -> Segment:
        """Write `table`, in one chunk, as a new file and map it; in any thread.

        It survives the death of the process; a machine that loses power may lose it, which the
        checksum then tells.

        Raises:
            StateFull: it cannot be written.
        """
        with self._naming:
            name = f"{kind}-{self._number:08d}.arrow"
            self._number += 1
        path, draft = self._path / name, self._path / f".{name}"
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            with pa.OSFile(str(draft), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
            draft.replace(path)
            data = pa.memory_map(str(path)).read_buffer()
        except OSError as error:
            raise StateFull(path, os.strerror(error.errno) if error.errno else error) from error
        self._files.add(name)
        file = File(name=name, size=data.size, xxh64=xxhash.xxh64(data).hexdigest())
        return Segment.of(pa.ipc.open_file(data).read_all(), file)

    def open(self, file: File) -> Segment:
        """Map a file that an earlier process wrote.

        Raises:
            SegmentError: it is missing or damaged.
        """
        data = self.check(file)
        self._files.add(file["name"])
        return Segment.of(pa.ipc.open_file(data).read_all(), file)

    def check(self, file: File) -> pa.Buffer:
        """Content of a file, if it is what was written; in any thread.

        Raises:
            SegmentError: it is missing or damaged.
        """
        path = self._path / file["name"]
        try:
            data = pa.memory_map(str(path)).read_buffer()
        except OSError as error:
            why = "it is gone" if not path.exists() else str(error)
            raise SegmentError(f"segment {path} cannot be read: {why}; {WAY_OUT}") from error
        found = xxhash.xxh64(data).hexdigest()
        if data.size != file["size"] or found != file["xxh64"]:
            raise SegmentError(
                f"segment {path} is damaged: {data.size} bytes, xxh64 {found}; "
                f"its snapshot says {file['size']} bytes, xxh64 {file['xxh64']}; {WAY_OUT}"
            )
        return data

    def resume(self, number: int, named: Iterable[str]) -> None:
        """Go on from a snapshot; files that it does not name are of a time that never was.

        What an earlier run of the flow in this process has begun to write is waited for.
        """
        wait_for_writes()
        self._number, keep = number, set(named)
        self._earlier.append(keep)
        for path in self._path.glob("*.arrow") if self._path.exists() else ():
            if path.name not in keep:
                path.unlink()

    def retire(self, named: set[str]) -> None:
        """Delete what neither this snapshot nor the ones before it name.

        Raises:
            SegmentError: a file that it names is gone, so nothing could go on from it.
        """
        for name in sorted(named):
            if not (self._path / name).exists():
                raise SegmentError(f"segment {self._path / name} is gone; {WAY_OUT}")
        for name in self._files.difference(named, *self._earlier):
            (self._path / name).unlink(missing_ok=True)
            self._files.discard(name)
        self._earlier.append(named)

    def add(self, store: SegmentStore) -> None:
        """A store writes here."""
        self._stores.append(store)

    def spill(self) -> None:
        """Let all stores write what they hold in memory, beside what comes next."""
        for store in self._stores:
            store.spill()

    @property
    def number(self) -> int:
        """Number of the next file."""
        return self._number


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
        folder.add(self)

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
