"""Rows of examples where tasks are conditional, early or corrected.

What a row needs is computed anew from the labels kept, whenever a window closes or a label wakes
its impression: nothing is remembered of earlier rows, so neither a crash nor a straggler can lead
to a second example of a task. Only impressions with labels are looked at one by one.

Legend: N = rows, T = tasks.
"""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa

from flows.join.label_join import LabelJoin
from flows.join.label_rules import LabelRules
from flows.join.leaving import Leaving, Masks, single, together, whole
from flows.join.outcomes import COLUMNS, GROUP, decisions, extra_rows, judged, sequences
from flows.join.places import PLACE
from flows.join.segment_folder import SegmentFolder
from flows.join.segments import SegmentStore, StoreState
from flows.records import ADDRESS, END_MS
from monitoring.metrics import (
    DAS_CORRECTING,
    DAS_KNOWN_NEGATIVES,
    DAS_REPEATS,
)

BORN = pa.schema([pa.field("ts_ms", pa.int64()), pa.field("impression_id", pa.string()), *ADDRESS])
ROW = ["at", "impression_id", "shown_ms", "closed_ms", "rank"]
WOKEN = -1
"""In the place of a window's rank: no window of the impression closes in this step."""


class PolicyJoin:
    """Labels of one shard, under the policies of their tasks."""

    def __init__(self, folder: SegmentFolder, rules: LabelRules, labels: LabelJoin) -> None:
        self._rules, self._labels = rules, labels
        self._born = SegmentStore(folder, "born", BORN)  # impressions that came late; ts_ms: when

    def add_late(self, impressions: pa.Table, done_ms: int) -> None:
        """Note that impressions before `done_ms` came after it was closed."""
        if not self._rules.plain:
            born_ms = pa.array(np.full(impressions.num_rows, done_ms))
            named = impressions.select([name for name in BORN.names if name != "ts_ms"])
            self._born.append(named.append_column("ts_ms", born_ms))

    def waking(self, low_ms: int, high_ms: int) -> pa.Array:
        """Ids of impressions that may have a row at some low_ms <= time < high_ms by a label."""
        if not self._rules.waking:
            return pa.array([], pa.string())
        late = self._born.between(low_ms, high_ms)["impression_id"]
        labelled = self._labels.waking(low_ms, high_ms)
        return pa.chunked_array([*labelled.chunks, *late.chunks], pa.string()).combine_chunks()

    def leaving(
        self, items: pl.DataFrame, ids: pa.ChunkedArray, low_ms: int, high_ms: int
    ) -> Leaving:
        """Rows of a step, in no order.

        Args:
            items: at, impression_id, shown_ms, place, closed_ms and rank of each closing window,
                and of each impression that was woken (rank WOKEN).
            ids: of these impressions.
            low_ms: event time closed before the step.
            high_ms: event time closed by it.
        """
        items = self._with_born(items)
        labels = self._labels.rows(low_ms - self._rules.keep_ms, high_ms, ids)
        labels = labels.with_row_index("label_at")
        known = labels.select("impression_id").unique()
        labelled = (
            items.join(known, on="impression_id", how="semi")
            .unique(["impression_id", "shown_ms"], keep="first")
            .select("at", "impression_id", "shown_ms", "born_ms")
            .with_row_index("item")
        )
        due = items.filter(pl.col("rank") != WOKEN)
        if not labelled.height:
            return self._windows(due, None)
        pairs = labels.join(labelled, on="impression_id")
        follows = pl.col("ts_ms") >= pl.col("shown_ms")
        events = sequences(pairs.filter(follows).select(COLUMNS), self._rules)
        decided = decisions(events)
        own = judged(events, decided)
        self._count(labels, own, low_ms, high_ms)
        at = pl.col("closed_ms")
        extras = extra_rows(own, decided).filter((at >= low_ms) & (at < high_ms))
        windows = self._windows(due, decided.join(labelled, on="item"))
        return together(windows, self._extras(extras.join(labelled, on="item")))

    def forget(self, before_ms: int) -> None:
        """Forget impressions before `before_ms`."""
        self._born.forget(before_ms)

    def save(self) -> dict[str, StoreState]:
        """State in plain data."""
        return {"born": self._born.save()}

    def restore(self, state: dict[str, StoreState]) -> None:
        """Go on from what `save` returned."""
        self._born.restore(state["born"])

    @property
    def num_bytes(self) -> int:
        """Size of the files."""
        return self._born.num_bytes

    def _with_born(self, items: pl.DataFrame) -> pl.DataFrame:
        """Items with the time from which each impression counts."""
        late = self._born.between(self._born.floor_ms, END_MS)
        if not late.num_rows:
            return items.with_columns(born_ms="shown_ms")
        born = pl.DataFrame(pl.from_arrow(late)).select(*PLACE, born_ms="ts_ms")
        found = items.join(born, on=PLACE, how="left", maintain_order="left")
        return found.with_columns(pl.col("born_ms").fill_null(pl.col("shown_ms")))

    def _windows(self, due: pl.DataFrame, decided: pl.DataFrame | None) -> Leaving:
        """Rows of closing windows, given what labels decided."""
        masks_NT = self._without_labels(due)
        labels_NT = np.zeros(masks_NT.shape, dtype=np.int8)
        if decided is not None:
            columns = ["row", "impression_id", "shown_ms", "closed_ms"]
            rows = due.with_row_index("row").select(columns)
            found = rows.join(decided, on=["impression_id", "shown_ms"])
            counts = (found["close_ms"] == found["closed_ms"]).fill_null(False).to_numpy()
            at = found["row"].to_numpy(), found["task"].to_numpy()
            masks_NT[at] = counts
            labels_NT[at] = np.where(counts, found["label"].to_numpy(), 0)
        self._count_known_negatives(due, masks_NT)
        return Leaving(rows=whole(due.select(ROW)), masks_NT=masks_NT, labels_NT=labels_NT)

    def _without_labels(self, due: pl.DataFrame) -> Masks:
        """Which tasks count in the rows of windows of impressions without any label."""
        ranks_T, rank = self._rules.ranks_T, due["rank"].to_numpy()
        masks_NT: Masks = rank[:, None] == ranks_T
        for task, condition in self._rules.conditions:
            condition_ms = self._rules.table["condition_ms"][task]
            met_late = (due["shown_ms"] + condition_ms < due["born_ms"]).to_numpy()
            masks_NT[:, task] = np.where(met_late, masks_NT[:, task], rank == ranks_T[condition])
        return masks_NT

    def _extras(self, extras: pl.DataFrame) -> Leaving:
        """Early rows and corrections."""
        rank = pl.Series("rank", self._rules.ranks_T[extras["task"].to_numpy()])
        rows = extras.with_columns(rank).select(*ROW, "task", "correction", "label")
        return single(rows, len(self._rules.names))

    def _count_known_negatives(self, due: pl.DataFrame, masks_NT: Masks) -> None:
        rank = due["rank"].to_numpy()
        for task, condition in self._rules.conditions:
            num = int(masks_NT[rank == self._rules.ranks_T[condition], task].sum())
            DAS_KNOWN_NEGATIVES.labels(self._rules.names[task]).inc(num)

    def _count(self, labels: pl.DataFrame, own: pl.DataFrame, low_ms: int, high_ms: int) -> None:
        """Count labels once: when their window closes, or when they come in time to correct."""

        def now(name: str) -> pl.Expr:
            return (pl.col(name) >= low_ms) & (pl.col(name) < high_ms)

        closes = now("closed_ms") & (pl.col("born_ms") <= pl.col("closed_ms"))
        corrects = pl.col("late") & pl.col("corrects")
        counts = ~pl.col("late") & ((pl.col("met") == 1) | pl.col("early_ms").is_not_null())
        inside = own.filter(counts & closes)
        DAS_REPEATS.labels("labels").inc(inside.height - inside.select(GROUP).n_unique())
        in_time = pl.col("known_ms") < pl.col("end_ms") + pl.col("horizon_ms")
        correcting = own.filter(corrects & in_time & now("known_ms"))
        for task, num in correcting["task"].value_counts().iter_rows():
            DAS_CORRECTING.labels(self._rules.names[task]).inc(num)
        placed = pl.concat([inside.select("label_at"), correcting.select("label_at")])
        self._labels.placed(labels.join(placed, on="label_at", how="semi"))
