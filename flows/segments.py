"""Immutable Arrow segments: what a shard waits with, in memory until a snapshot, then in files.

Rows that arrive and are forgotten between two snapshots never touch the disk. Files are mapped, so
the state may exceed memory, and merged like the digits of a binary counter, so they stay few.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa
import xxhash

from flows.das_recovery import WAY_OUT, StateFull
from flows.records import BEGIN_MS

MAX_MERGED_BYTES = 256 << 20
"""Files of this size and more are not merged any further."""
KEPT_SNAPSHOTS = 2
"""Earlier snapshots whose files stay: the newest may not be committed yet."""


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
    """Rows that never change."""

    table: pa.Table
    first_ms: int
    """Smallest `ts_ms`."""
    last_ms: int
    """Largest `ts_ms`."""
    file: File | None
    """None: in memory only."""

    @classmethod
    def of(cls, table: pa.Table, file: File | None = None) -> Segment:
        """A segment of at least one row."""
        ts_ms = times(table)
        return cls(table=table, first_ms=int(ts_ms.min()), last_ms=int(ts_ms.max()), file=file)


def times(table: pa.Table) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Column `ts_ms`, shape [N]."""
    return np.asarray(table.column("ts_ms").to_numpy(), dtype=np.int64)


def rows_between(segment: Segment, low_ms: int, high_ms: int) -> pa.Table:
    """Rows of `segment` with low_ms <= ts_ms < high_ms, in their order."""
    if low_ms <= segment.first_ms and segment.last_ms < high_ms:
        return segment.table
    ts_ms = times(segment.table)
    return segment.table.take(np.flatnonzero((ts_ms >= low_ms) & (ts_ms < high_ms)))


def oldest_from(segment: Segment, low_ms: int) -> int | None:
    """Smallest `ts_ms` of a segment that is at least `low_ms`."""
    if segment.first_ms >= low_ms or segment.last_ms < low_ms:
        return segment.first_ms if segment.first_ms >= low_ms else None
    ts_ms = times(segment.table)
    return int(ts_ms[ts_ms >= low_ms].min())


class SegmentFolder:
    """The files of one shard."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files: set[str] = set()
        self._earlier: deque[set[str]] = deque(maxlen=KEPT_SNAPSHOTS)
        self._number = 0

    def write(self, kind: str, table: pa.Table) -> Segment:
        """Write `table` as a new file and map it.

        Raises:
            StateFull: it cannot be written.
        """
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table.combine_chunks())
        data = sink.getvalue()
        name = f"{kind}-{self._number:08d}.arrow"
        self._number += 1
        draft = self._path / f".{name}"
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            draft.write_bytes(data)
            draft.replace(self._path / name)
        except OSError as error:
            raise StateFull(self._path / name, error.strerror) from error
        self._files.add(name)
        file = File(name=name, size=data.size, xxh64=xxhash.xxh64(data).hexdigest())
        return Segment.of(self._map(name).read_all(), file)

    def open(self, file: File) -> Segment:
        """Map a file that an earlier process wrote.

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
        self._files.add(file["name"])
        return Segment.of(pa.ipc.open_file(data).read_all(), file)

    def resume(self, number: int, named: Iterable[str]) -> None:
        """Go on from a snapshot; files that it does not name are of a time that never was."""
        self._number, keep = number, set(named)
        self._earlier.append(keep)
        for path in self._path.glob("*.arrow") if self._path.exists() else ():
            if path.name not in keep:
                path.unlink()

    def retire(self, named: set[str]) -> None:
        """Delete what neither this snapshot nor the ones before it name."""
        for name in self._files.difference(named, *self._earlier):
            (self._path / name).unlink(missing_ok=True)
            self._files.discard(name)
        self._earlier.append(named)

    @property
    def number(self) -> int:
        """Number of the next file."""
        return self._number

    def _map(self, name: str) -> pa.ipc.RecordBatchFileReader:
        return pa.ipc.open_file(pa.memory_map(str(self._path / name)))


class SegmentStore:
    """Rows of one kind, in the order in which they came, forgotten by event time."""

    def __init__(self, folder: SegmentFolder, kind: str, schema: pa.Schema) -> None:
        self._folder, self._kind, self._schema = folder, kind, schema
        self._segments: list[Segment] = []
        self.floor_ms = BEGIN_MS
        """Rows before this are forgotten."""

    def append(self, table: pa.Table) -> None:
        """Take rows in; those before the floor are not seen again."""
        if not table.num_rows:
            return
        columns = [table.column(name) for name in self._schema.names]
        self._add(pa.Table.from_arrays(columns, schema=self._schema))

    def between(self, low_ms: int, high_ms: int) -> pa.Table:
        """Rows with low_ms <= ts_ms < high_ms that are not forgotten."""
        low_ms = max(low_ms, self.floor_ms)
        found = [
            rows_between(s, low_ms, high_ms)
            for s in self._segments
            if s.first_ms < high_ms and s.last_ms >= low_ms
        ]
        return pa.concat_tables(found) if found else self._schema.empty_table()

    def count(self, low_ms: int, high_ms: int) -> int:
        """Number of rows that `between` returns."""
        low_ms = max(low_ms, self.floor_ms)
        total = 0
        for s in self._segments:
            if low_ms <= s.first_ms and s.last_ms < high_ms:
                total += s.table.num_rows
            elif s.first_ms < high_ms and s.last_ms >= low_ms:
                ts_ms = times(s.table)
                total += int(((ts_ms >= low_ms) & (ts_ms < high_ms)).sum())
        return total

    def forget(self, before_ms: int) -> None:
        """Raise the floor."""
        self.floor_ms = max(self.floor_ms, before_ms)
        self._segments = [s for s in self._segments if s.last_ms >= self.floor_ms]

    def save(self) -> StoreState:
        """Write what is in memory; the files that together hold the store."""
        fresh = [self._live(s) for s in self._segments if s.file is None]
        self._segments = [s for s in self._segments if s.file is not None]
        table = pa.concat_tables(fresh) if fresh else self._schema.empty_table()
        if table.num_rows:
            while self._segments and self._merges(self._segments[-1], table):
                table = pa.concat_tables([self._live(self._segments.pop()), table])
            self._segments.append(self._folder.write(self._kind, table))
        return StoreState(floor_ms=self.floor_ms, files=[s.file for s in self._segments if s.file])

    def restore(self, state: StoreState) -> None:
        """Go on from what `save` returned."""
        self.floor_ms = state["floor_ms"]
        self._segments = [self._folder.open(file) for file in state["files"]]

    @property
    def num_bytes(self) -> int:
        """Size of the files."""
        return sum(s.file["size"] for s in self._segments if s.file)

    @property
    def oldest_ms(self) -> int | None:
        """Smallest `ts_ms` that is not forgotten."""
        found = [oldest_from(s, self.floor_ms) for s in self._segments]
        return min((ts_ms for ts_ms in found if ts_ms is not None), default=None)

    def _add(self, table: pa.Table) -> None:
        while self._segments and self._segments[-1].file is None:
            last = self._segments[-1].table
            if last.num_rows >= 2 * table.num_rows:
                break
            self._segments.pop()
            table = pa.concat_tables([last, table]).combine_chunks()
        self._segments.append(Segment.of(table))

    def _live(self, segment: Segment) -> pa.Table:
        return rows_between(segment, self.floor_ms, segment.last_ms + 1)

    def _merges(self, last: Segment, table: pa.Table) -> bool:
        small = last.file is None or last.file["size"] < MAX_MERGED_BYTES
        return small and last.table.num_rows < 2 * table.num_rows
