"""What an earlier life of a shard wrote behind the snapshot from which this one goes on.

Live, the wall clock has a say in what a bucket holds: after a crash the same bucket may close with
other rows. What stands in `examples` is the truth. Numbers go on behind it, tasks that it holds are
not emitted again, and rows of buckets that it marked as complete leave in the bucket that follows.

A label may be in time now that was late then. Where a task corrects, what contradicts the last
example that was written is another correction, with the next number; else it is dropped, counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import polars as pl
import pyarrow as pa

from flows.join.label_rules import LabelRules
from flows.join.leaving import Leaving, single, together
from flows.join.segment_folder import SegmentFolder
from flows.join.segments import SegmentStore, StoreState
from flows.records import BEGIN_MS
from monitoring.metrics import DAS_MOVED, DAS_TOO_LATE

EMITTED = pa.schema(
    [
        pa.field("ts_ms", pa.int64()),  # of the impression
        pa.field("impression_id", pa.string()),
        pa.field("task", pa.int16()),
        pa.field("correction", pa.int32()),
        pa.field("label", pa.int8()),
    ]
)
EMITTED_OF_ITEM = [pl.col("shown_ms").alias("ts_ms"), *EMITTED.names[1:]]
ITEM = ["impression_id", "shown_ms", "task"]
"""What has one example, and perhaps corrections."""


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
Recall: TypeAlias = "Callable[[int, int], Search | None]"
"""Begins to look for the rows of a shard from a running number on; None: they do not matter."""


class Emitted:
    """Tasks that must not be emitted again, and what was said of them last."""

    def __init__(self, folder: SegmentFolder, horizon_ms: int, rules: LabelRules) -> None:
        """Begin with none.

        Args:
            folder: of the shard.
            horizon_ms: impressions of one id are the same if they are closer than this.
            rules: of the tasks.
        """
        self._store = SegmentStore(folder, "emitted", EMITTED)
        self._horizon_ms, self._rules = horizon_ms, rules
        self.through_ms = BEGIN_MS
        """No row may leave in an earlier bucket."""

    def recall(self, written: Written) -> None:
        """Take in what was found in `examples`."""
        self._store.append(written.rows)
        self.through_ms = max(self.through_ms, written.through_ms)

    def without(self, leaving: Leaving) -> Leaving:
        """Rows with the tasks only that say something new, in buckets that may follow."""
        leaving = self._news(leaving)
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

    def _news(self, leaving: Leaving) -> Leaving:
        known = self._known(leaving)
        if not known.height:
            return leaving
        items = known.with_columns(
            before=pl.col("label").shift(1).over(ITEM).fill_null(pl.col("written")),
            corrects=pl.Series(self._rules.corrects_T[known["task"].to_numpy()]),
        )
        differs = pl.col("label") != pl.when("corrects").then("before").otherwise("written")
        items = items.with_columns(is_new=differs & pl.col("corrects"), is_lost=differs)
        number = pl.col("last") + pl.col("is_new").cast(pl.Int64).cum_sum().over(ITEM)
        new = items.with_columns(correction=number).filter("is_new")
        DAS_TOO_LATE.labels("labels").inc(
            items.filter(pl.col("is_lost") & ~pl.col("is_new")).height
        )
        self._store.append(new.select(EMITTED_OF_ITEM).to_arrow().cast(EMITTED))
        masks_NT, labels_NT = leaving.masks_NT.copy(), leaving.labels_NT.copy()
        at = items["row"].to_numpy(), items["task"].to_numpy()
        masks_NT[at], labels_NT[at] = np.False_, 0
        others = Leaving(rows=leaving.rows, masks_NT=masks_NT, labels_NT=labels_NT)
        rows = new.select(*leaving.rows.columns, "label")
        return together(others, single(rows, masks_NT.shape[1])) if new.height else others

    def _known(self, leaving: Leaving) -> pl.DataFrame:
        """Tasks of rows of which something was written before, in order.

        Returns:
            row, the columns of `Leaving.rows` (task: which), label, last and written: number and
            label of the last example that was written.
        """
        shown_N = leaving.rows["shown_ms"].to_numpy()
        if not len(shown_N) or not self._store.tables():
            return pl.DataFrame()
        near_ms = self._horizon_ms - 1
        known = self._store.between(int(shown_N.min()) - near_ms, int(shown_N.max()) + near_ms + 1)
        if not known.num_rows:
            return pl.DataFrame()
        row, task = np.nonzero(leaving.masks_NT)
        items = leaving.rows[row].with_columns(
            row=pl.Series(row),
            task=pl.Series(task.astype(np.int16)),
            label=pl.Series(leaving.labels_NT[row, task]),
        )
        written = pl.DataFrame(pl.from_arrow(known)).select(
            "impression_id", "task", written_ms="ts_ms", last="correction", written="label"
        )
        pairs = items.join(written, on=["impression_id", "task"])
        near = (pl.col("shown_ms") - pl.col("written_ms")).abs() <= near_ms
        last = pairs.filter(near).sort("last").unique(["row", "task"], keep="last")
        return last.sort(*ITEM, "closed_ms", "correction")
