"""Rows found by their place: partition, offset and index of a record in its topic."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from flows.records import ADDRESS

PLACE = [f.name for f in ADDRESS]
"""Columns that name a record by its place in a topic."""

MAX_SPREAD = 128
"""Places between the least and the greatest, per row, up to which a plain array holds them."""

Rows = np.ndarray[Any, np.dtype[np.int64]]


class Places:
    """Rows of a table by their place; of several with the same one, the first.

    The rows of a shard are spread evenly over the offsets of a topic, so an array indexed by place
    is small, and finds a row without hashing or sorting.
    """

    def __init__(self, rows: pa.Table) -> None:
        """Index a table that has the columns of ADDRESS."""
        self._rows = rows.select(PLACE)
        self._row_of: np.ndarray[Any, np.dtype[np.int32]] | None = None
        if not rows.num_rows:
            return
        columns = [place_column(rows, name) for name in PLACE]
        self._least = [int(column.min()) for column in columns]
        self._size = [int(c.max()) - low + 1 for c, low in zip(columns, self._least, strict=True)]
        if self._size[0] * self._size[1] * self._size[2] <= MAX_SPREAD * rows.num_rows:
            self._row_of = np.full(np.prod(self._size), -1, dtype=np.int32)
            at = self._key(columns)
            self._row_of[at[::-1]] = np.arange(rows.num_rows - 1, -1, -1, dtype=np.int32)

    def find(self, rows: pa.Table) -> Rows:
        """Row of the same place in the indexed table, or -1, for each of `rows`."""
        if not self._rows.num_rows or not rows.num_rows:
            return np.full(rows.num_rows, -1, dtype=np.int64)
        if self._row_of is None:
            return self._find_by_hash(rows)
        columns = [place_column(rows, name) for name in PLACE]
        inside = np.ones(rows.num_rows, dtype=np.bool_)
        for column, least, size in zip(columns, self._least, self._size, strict=True):
            inside &= (column >= least) & (column < least + size)
        found = np.full(rows.num_rows, -1, dtype=np.int64)
        found[inside] = self._row_of[self._key([column[inside] for column in columns])]
        return found

    @property
    def num_distinct(self) -> int:
        """Number of places."""
        if self._row_of is None:
            return pl.DataFrame(pl.from_arrow(self._rows)).n_unique()
        return int((self._row_of >= 0).sum())

    def _key(self, columns: list[Rows]) -> Rows:
        partition, offset, index = (
            column - least for column, least in zip(columns, self._least, strict=True)
        )
        return (partition * self._size[1] + offset) * self._size[2] + index

    def _find_by_hash(self, rows: pa.Table) -> Rows:
        known = pl.DataFrame(pl.from_arrow(self._rows)).with_row_index("found")
        first = known.unique(PLACE, keep="first")
        wanted = pl.DataFrame(pl.from_arrow(rows.select(PLACE)))
        joined = wanted.join(first, on=PLACE, how="left", maintain_order="left")
        return joined["found"].cast(pl.Int64).fill_null(-1).to_numpy()


def place_column(rows: pa.Table, name: str) -> Rows:
    """A column of ADDRESS, shape [N]."""
    return np.asarray(rows.column(name).to_numpy(), dtype=np.int64)
