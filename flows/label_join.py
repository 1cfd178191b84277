"""The label of an example: of the labels of (impression, task) within the window, the first.

First by (event time, value), in whatever order they arrived.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
import pyarrow as pa

from flows.admission import PLACE
from flows.records import ADDRESS, LABELS
from flows.segments import SegmentFolder, SegmentStore, StoreState
from monitoring.metrics import DAS_OUTSIDE, DAS_REPEATS, DAS_UNMATCHED

LABEL_ROWS = pa.schema([*LABELS, *ADDRESS])
SEEN = pa.schema([pa.field("ts_ms", pa.int64()), *ADDRESS])


class LabelJoin:
    """Labels that wait for their impression's window to close."""

    def __init__(self, folder: SegmentFolder, rank_of_task: Sequence[int]) -> None:
        """Args are the shard's files and the window of each task, as a rank among the windows."""
        self._rank_of_task = np.array(rank_of_task, dtype=np.int64)
        self._labels = SegmentStore(folder, "labels", LABEL_ROWS)
        self._seen = SegmentStore(folder, "seen", SEEN)  # labels that found their impression

    def add(self, labels: pa.Table) -> None:
        """Take labels in."""
        self._labels.append(labels)

    def join(self, due: pl.DataFrame, low_ms: int, high_ms: int) -> pl.DataFrame:
        """Labels of closing examples.

        Args:
            due: closing examples: row, impression_id, shown_ms, closed_ms, rank.
            low_ms: earliest `shown_ms`.
            high_ms: no `closed_ms` is beyond it.

        Returns:
            row, task, value: at most one for each row and task of the row's window.
        """
        labels = pl.DataFrame(pl.from_arrow(self._labels.between(low_ms, high_ms)))
        rank = pl.Series("rank", self._rank_of_task[labels["task"].to_numpy()])
        pairs = labels.with_columns(rank).join(due, on=["impression_id", "rank"], how="inner")
        self._seen.append(pairs.select("ts_ms", *PLACE).unique().to_arrow())
        inside = pairs.filter(
            (pl.col("shown_ms") <= pl.col("ts_ms")) & (pl.col("ts_ms") < pl.col("closed_ms"))
        )
        order = ["row", "task", "ts_ms", "value"]
        first = inside.sort(order).unique(["row", "task"], keep="first", maintain_order=True)
        DAS_OUTSIDE.inc(pairs.height - inside.height)
        DAS_REPEATS.labels("labels").inc(inside.height - first.height)
        return first.select("row", "task", "value")

    def forget(self, before_ms: int) -> None:
        """Forget labels before `before_ms`; those that found no impression are counted."""
        floor_ms = self._labels.floor_ms
        old = self._labels.between(floor_ms, before_ms)
        if old.num_rows:
            seen = pl.DataFrame(pl.from_arrow(self._seen.between(floor_ms, before_ms)))
            places = pl.DataFrame(pl.from_arrow(old.select(PLACE)))
            unmatched = places.join(seen, on=PLACE, how="anti").height
            DAS_UNMATCHED.labels("labels").inc(unmatched)
        self._labels.forget(before_ms)
        self._seen.forget(before_ms)

    def save(self) -> dict[str, StoreState]:
        """State in plain data."""
        return {"labels": self._labels.save(), "seen": self._seen.save()}

    def restore(self, state: dict[str, StoreState]) -> None:
        """Go on from what `save` returned."""
        self._labels.restore(state["labels"])
        self._seen.restore(state["seen"])

    @property
    def floor_ms(self) -> int:
        """Labels before this find nothing any more."""
        return self._labels.floor_ms

    @property
    def num_bytes(self) -> int:
        """Size of the files."""
        return self._labels.num_bytes + self._seen.num_bytes
