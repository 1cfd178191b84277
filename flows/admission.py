"""Which impressions count: of the records of one id, those that are no repeat of another.

Records are admitted in the order (event time, id, content); one whose id was admitted less than the
repeat horizon before is a repeat. All forgetting goes by event time.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from flows.records import ADDRESS, END_MS
from flows.segments import SegmentFolder, SegmentStore, StoreState

PLACE = [f.name for f in ADDRESS]
"""Columns that name a record by its place in a topic."""

RECENT = pa.schema([pa.field("impression_id", pa.string()), pa.field("ts_ms", pa.int64())])
REPEATS = pa.schema([pa.field("ts_ms", pa.int64()), *ADDRESS])


class Admission:
    """Remembers what was admitted, and which records were not."""

    def __init__(self, folder: SegmentFolder, horizon_ms: int) -> None:
        self._horizon_ms = horizon_ms
        self._recent: dict[str, int] = {}  # id: ts_ms of its newest admitted record
        self._recent_rows = SegmentStore(folder, "recent", RECENT)
        self._repeats = SegmentStore(folder, "repeats", REPEATS)

    def admit(self, rows: pa.Table) -> int:
        """Judge `rows`, all of whose predecessors were judged before.

        Returns:
            How many of them are repeats.
        """
        if not rows.num_rows:
            return 0
        ids = rows.column("impression_id").to_pylist()
        suspects = self._suspects(ids)
        if not suspects:
            self._remember(rows, ids)
            return 0
        newest, repeats = self._judge(rows, suspects)
        self._repeats.append(rows.take(np.array(repeats, dtype=np.int64)))
        admitted = rows.take(np.delete(np.arange(rows.num_rows), repeats))
        self._remember(admitted, admitted.column("impression_id").to_pylist())
        self._recent.update(newest)
        return len(repeats)

    def without_repeats(self, rows: pa.Table, low_ms: int, high_ms: int) -> pa.Table:
        """`rows` (low_ms <= ts_ms < high_ms, all judged) that were admitted."""
        repeats = self._repeats.between(low_ms, high_ms)
        if not repeats.num_rows or not rows.num_rows:
            return rows
        places = pl.DataFrame(pl.from_arrow(rows.select(PLACE))).with_row_index("row")
        known = pl.DataFrame(pl.from_arrow(repeats.select(PLACE)))
        kept = places.join(known, on=PLACE, how="anti", maintain_order="left")
        return rows.take(kept["row"].to_numpy())

    def forget(self, limit_ms: int, oldest_ms: int) -> None:
        """Forget ids that no row from `limit_ms` on can repeat, and repeats before `oldest_ms`."""
        before_ms = limit_ms - self._horizon_ms + 1
        old = self._recent_rows.between(self._recent_rows.floor_ms, before_ms)
        for ident, ts_ms in zip(*(old.column(n).to_pylist() for n in RECENT.names), strict=True):
            if self._recent.get(ident) == ts_ms:
                del self._recent[ident]
        self._recent_rows.forget(before_ms)
        self._repeats.forget(oldest_ms)

    def save(self) -> dict[str, StoreState]:
        """State in plain data."""
        return {"recent": self._recent_rows.save(), "repeats": self._repeats.save()}

    def restore(self, state: dict[str, StoreState]) -> None:
        """Go on from what `save` returned."""
        self._recent_rows.restore(state["recent"])
        self._repeats.restore(state["repeats"])
        self._recent.clear()
        floor_ms = self._recent_rows.floor_ms
        rows = self._recent_rows.between(floor_ms, END_MS).sort_by("ts_ms")
        self._recent.update(zip(*(rows.column(n).to_pylist() for n in RECENT.names), strict=True))

    @property
    def num_bytes(self) -> int:
        """Size of the files."""
        return self._recent_rows.num_bytes + self._repeats.num_bytes

    def _suspects(self, ids: list[str]) -> list[int]:
        """Rows whose id stands in another row or was admitted before."""
        twice: set[str] = set()
        if len(set(ids)) < len(ids):
            twice = {ident for ident, n in Counter(ids).items() if n > 1}
        return [i for i, ident in enumerate(ids) if ident in self._recent or ident in twice]

    def _remember(self, admitted: pa.Table, ids: list[str]) -> None:
        self._recent.update(zip(ids, admitted.column("ts_ms").to_pylist(), strict=True))
        self._recent_rows.append(admitted)

    def _judge(self, rows: pa.Table, suspects: list[int]) -> tuple[dict[str, int], list[int]]:
        """Newest admitted record of each id among `suspects`, and the rows that are repeats."""
        newest: dict[str, int] = {}
        repeats = []
        records = rows.take(np.array(suspects, dtype=np.int64)).to_pylist()
        for row, record in sorted(zip(suspects, records, strict=True), key=canonical):
            ident, ts_ms = record["impression_id"], record["ts_ms"]
            before_ms = newest.get(ident, self._recent.get(ident))
            if before_ms is not None and ts_ms - before_ms < self._horizon_ms:
                repeats.append(row)
            else:
                newest[ident] = ts_ms
        return newest, repeats


def canonical(item: tuple[int, dict[str, Any]]) -> tuple[int, str, str, tuple[int, ...]]:
    """Sort key of a record: event time, id, content, and last its place in the topic."""
    record = item[1]
    content = repr([value for name, value in record.items() if name not in PLACE])
    return record["ts_ms"], record["impression_id"], content, tuple(record[n] for n in PLACE)
