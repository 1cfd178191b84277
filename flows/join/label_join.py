"""Labels that wait for their impression: kept until no row can depend on them, then counted.

`known_ms` of a label is when its shard could know it: its event time or, of a straggler (live
only), the event time that the shard had closed when it arrived.
"""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from flows.join.label_rules import LabelRules
from flows.join.places import PLACE
from flows.join.recent_ids import RecentIds, hashes
from flows.join.row_choice import rows_among
from flows.join.segment import times
from flows.join.segment_folder import SegmentFolder
from flows.join.segments import SegmentStore, StoreState
from flows.records import ADDRESS, LABELS
from monitoring.metrics import DAS_REPEATS, DAS_UNMATCHED

ARRIVING = pa.schema([*LABELS, *ADDRESS])
LABEL_ROWS = pa.schema([*ARRIVING, pa.field("known_ms", pa.int64())])
STRAGGLERS = pa.schema([LABELS.field(n) for n in ("impression_id", "task", "ts_ms")])
PLACED = pa.schema([pa.field("ts_ms", pa.int64()), *ADDRESS])
FEW = 16
"""Labels per impression up to which all are looked at, in place of an index."""


class LabelJoin:
    """The labels of one shard."""

    def __init__(self, folder: SegmentFolder, rules: LabelRules) -> None:
        self._rules = rules
        self._labels = SegmentStore(folder, "labels", LABEL_ROWS)
        self._ids = RecentIds(folder, "labelled")
        self._placed = SegmentStore(folder, "placed", PLACED)
        self._stragglers = SegmentStore(folder, "stragglers", STRAGGLERS)  # ts_ms: known_ms

    def add(self, labels: pa.Table, done_ms: int) -> None:
        """Take labels in.

        Args:
            labels: `ARRIVING`.
            done_ms: event time that the shard has closed.
        """
        known_ms = np.maximum(times(labels), done_ms)
        labels = labels.select(ARRIVING.names).append_column("known_ms", pa.array(known_ms))
        self._labels.append(labels)
        self._ids.add(*hashes(labels["impression_id"]), times(labels))
        behind = times(labels) < done_ms
        if self._rules.waking and behind.any():
            late = labels.filter(pa.array(behind)).drop_columns("ts_ms")
            self._stragglers.append(late.rename_columns({"known_ms": "ts_ms"}))

    def rows(self, low_ms: int, high_ms: int, ids: pa.ChunkedArray) -> pl.DataFrame:
        """Labels with low_ms <= ts_ms < high_ms of some impressions."""
        labels = self._near(low_ms, high_ms, ids)
        return pl.DataFrame(pl.from_arrow(rows_among(labels, "impression_id", ids)))

    def waking(self, low_ms: int, high_ms: int) -> pa.ChunkedArray:
        """Ids of impressions that a label of low_ms <= known_ms < high_ms may lead to a row of."""
        columns = ["impression_id", "task"]
        parts = [
            s.between(low_ms, high_ms).select(columns) for s in (self._labels, self._stragglers)
        ]
        fresh = pa.concat_tables(parts)
        tasks = pa.array(self._rules.waking, pa.int16())
        return fresh.filter(pc.is_in(fresh["task"], value_set=tasks))["impression_id"]

    def join(self, due: pl.DataFrame, low_ms: int, high_ms: int) -> pl.DataFrame:
        """Labels of closing examples, where no task has a policy: the first of each, inside.

        Args:
            due: closing examples: row, impression_id, shown_ms, closed_ms, rank.
            low_ms: earliest `shown_ms`.
            high_ms: no `closed_ms` is beyond it.

        Returns:
            row, task, label: at most one for each row and task of the row's window.
        """
        near = self._near(low_ms, high_ms, due["impression_id"].to_arrow())
        labels = pl.DataFrame(pl.from_arrow(near))
        rank = pl.Series("rank", self._rules.ranks_T[labels["task"].to_numpy()])
        pairs = labels.with_columns(rank).join(due, on=["impression_id", "rank"], how="inner")
        in_window = (pl.col("shown_ms") <= pl.col("ts_ms")) & (
            pl.col("ts_ms") < pl.col("closed_ms")
        )
        inside = pairs.filter(in_window)
        self.placed(inside)
        order = ["row", "task", "ts_ms", "value"]
        first = inside.sort(order).unique(["row", "task"], keep="first", maintain_order=True)
        DAS_REPEATS.labels("labels").inc(inside.height - first.height)
        return first.select("row", "task", label="value")

    def _near(self, low_ms: int, high_ms: int, ids: pa.Array | pa.ChunkedArray) -> pa.Table:
        """Labels among which are those of some impressions: not many more than these if many."""
        if self._labels.count(low_ms, high_ms) <= FEW * len(ids):
            return self._labels.between(low_ms, high_ms)
        ts_N = self._ids.times_of(ids)
        return self._labels.at(ts_N[(ts_N >= low_ms) & (ts_N < high_ms)])

    def placed(self, labels: pl.DataFrame) -> None:
        """Remember that labels are in a window of an impression, or may correct."""
        self._placed.append(labels.select("ts_ms", *PLACE).unique().to_arrow())

    def forget(self, before_ms: int) -> None:
        """Forget labels before `before_ms`; those that were never `placed` are counted.

        Only then is that a property of the log: how many windows close in one step is not.
        """
        floor_ms = self._labels.floor_ms
        old = self._labels.between(floor_ms, before_ms)
        if old.num_rows:
            placed = pl.DataFrame(pl.from_arrow(self._placed.between(floor_ms, before_ms)))
            places = pl.DataFrame(pl.from_arrow(old.select(PLACE)))
            unmatched = places.join(placed, on=PLACE, how="anti").height
            DAS_UNMATCHED.labels("labels").inc(unmatched)
        for store in (self._labels, self._ids, self._placed, self._stragglers):
            store.forget(before_ms)

    def save(self) -> dict[str, StoreState]:
        """State in plain data."""
        return {
            "labels": self._labels.save(),
            "labelled": self._ids.save(),
            "placed": self._placed.save(),
            "stragglers": self._stragglers.save(),
        }

    def restore(self, state: dict[str, StoreState]) -> None:
        """Go on from what `save` returned."""
        self._labels.restore(state["labels"])
        self._ids.restore(state["labelled"])
        self._placed.restore(state["placed"])
        self._stragglers.restore(state["stragglers"])

    @property
    def floor_ms(self) -> int:
        """Labels before this find nothing any more."""
        return self._labels.floor_ms

    @property
    def num_bytes(self) -> int:
        """Size of the files."""
        stores = (self._labels, self._ids, self._placed, self._stragglers)
        return sum(store.num_bytes for store in stores)
