"""What an earlier life of a shard wrote behind the snapshot from which this one goes on.

Live, the wall clock has a say in what a bucket holds: after a crash the same bucket may close with
other rows. What stands in `examples` is the truth. Numbers go on behind it, tasks that it holds are
not emitted again, and rows of buckets that it marked as complete leave in the bucket that follows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import polars as pl
import pyarrow as pa

from flows.join.leaving import Leaving
from flows.join.segments import SegmentFolder, SegmentStore, StoreState
from flows.records import BEGIN_MS
from monitoring.metrics import DAS_MOVED

EMITTED = pa.schema(
    [
        pa.field("ts_ms", pa.int64()),  # of the impression
        pa.field("impression_id", pa.string()),
        pa.field("task", pa.int16()),
        pa.field("correction", pa.int16()),
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """What stands in `examples` behind a snapshot of a shard."""

    following: int
    """Running number behind it."""
    through_ms: int
    """Start of the bucket from which on rows may follow; BEGIN_MS: of any."""
    rows: pa.Table
    """`EMITTED`: each task of each row."""


Search: TypeAlias = "Callable[[], Written | None]"
"""Called until it has found everything; None: not yet."""
Recall: TypeAlias = "Callable[[int, int], Search]"
"""Begins to look for the rows of a shard from a running number on."""


class Emitted:
    """Tasks that must not be emitted again."""

    def __init__(self, folder: SegmentFolder, horizon_ms: int) -> None:
        """Begin with none.

        Args:
            folder: of the shard.
            horizon_ms: impressions of one id are the same if they are closer than this.
        """
        self._store = SegmentStore(folder, "emitted", EMITTED)
        self._horizon_ms = horizon_ms
        self.through_ms = BEGIN_MS
        """No row may leave in an earlier bucket."""

    def recall(self, written: Written) -> None:
        """Take in what was found in `examples`."""
        self._store.append(written.rows)
        self.through_ms = max(self.through_ms, written.through_ms)

    def without(self, leaving: Leaving) -> Leaving:
        """Rows with the tasks only that were not emitted before, in buckets that may follow."""
        leaving = self._unmatched(leaving)
        moved_N = leaving.rows["closed_ms"].to_numpy() < self.through_ms
        if not moved_N.any():
            return leaving
        num_moved = int((moved_N & leaving.masks_NT.any(axis=1)).sum())
        DAS_MOVED.inc(num_moved)
        closed_ms = pl.max_horizontal("closed_ms", pl.lit(self.through_ms))
        return Leaving(
            rows=leaving.rows.with_columns(closed_ms=closed_ms),
            masks_NT=leaving.masks_NT,
            labels_NT=leaving.labels_NT,
        )

    def forget(self, before_ms: int) -> None:
        """Forget what no impression from `before_ms` on can repeat."""
        self._store.forget(before_ms - self._horizon_ms + 1)

    def save(self) -> dict[str, StoreState]:
        """State in plain data, but for `through_ms`."""
        return {"emitted": self._store.save()}

    def restore(self, state: dict[str, StoreState]) -> None:
        """Go on from what `save` returned."""
        self._store.restore(state["emitted"])

    @property
    def num_bytes(self) -> int:
        """Size of the files."""
        return self._store.num_bytes

    def _unmatched(self, leaving: Leaving) -> Leaving:
        shown_N = leaving.rows["shown_ms"].to_numpy()
        if not len(shown_N) or not self._store.tables():
            return leaving
        near_ms = self._horizon_ms - 1
        known = self._store.between(int(shown_N.min()) - near_ms, int(shown_N.max()) + near_ms + 1)
        if not known.num_rows:
            return leaving
        keys = ["impression_id", "correction"]
        before = pl.DataFrame(pl.from_arrow(known)).rename({"task": "emitted"})
        before = before.with_columns(pl.col("correction").cast(pl.Int64))
        rows = leaving.rows.select(*keys, "shown_ms").with_row_index("row")
        found = rows.with_columns(pl.col("correction").cast(pl.Int64)).join(before, on=keys)
        found = found.filter((pl.col("shown_ms") - pl.col("ts_ms")).abs() <= near_ms)
        at = found["row"].to_numpy(), found["emitted"].to_numpy()
        masks_NT, labels_NT = leaving.masks_NT.copy(), leaving.labels_NT.copy()
        masks_NT[at], labels_NT[at] = np.False_, 0
        return Leaving(rows=leaving.rows, masks_NT=masks_NT, labels_NT=labels_NT)
