"""A segment: sorted rows that never change, in memory or in a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy as np
import pyarrow as pa

Times = np.ndarray[Any, np.dtype[np.int64]]
SIDES: tuple[Literal["left"], Literal["right"]] = ("left", "right")


class File(TypedDict):
    """A segment as a snapshot names it."""

    name: str
    size: int
    xxh64: str


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
