"""Join core of one DAS shard: a function of its inputs, free of any framework.

Impressions, labels and predictions wait in segments. When the watermarks pass the end of a bucket,
all its examples leave in the order (close time, impression id, window), and behind them a mark that
event time is complete up to there. How far each call gets depends on speed; what leaves does not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from flows.join.admission import Admission
from flows.join.emitted import Emitted, Written
from flows.join.example_rows import ExampleRows, Message, messages
from flows.join.label_join import LabelJoin
from flows.join.label_rules import LabelRules
from flows.join.leaving import plain
from flows.join.places import PLACE
from flows.join.policy_join import WOKEN, PolicyJoin
from flows.join.prediction_join import PredictionJoin
from flows.join.row_choice import rows_among
from flows.join.segment import times
from flows.join.segment_folder import SegmentFolder
from flows.join.segments import SegmentStore
from flows.join.shard_gauges import ShardGauges
from flows.join.spilling import Spilling
from flows.join.watermarks import Source, Watermarks
from flows.records import BEGIN_MS, END_MS, floor_ms, impression_schema, prediction_schema
from flows.settings import Settings
from monitoring.metrics import (
    DAS_CLOSE,
    DAS_PENDING,
    DAS_REPEATS,
    DAS_SEGMENT_BYTES,
    DAS_SNAPSHOT,
    DAS_TOO_LATE,
    DAS_WATERMARK,
)

MAX_CLOSE_ROWS = 65_536
"""Examples joined at a time, unless one bucket has more."""


class Shard:
    """State and join of one shard."""

    def __init__(
        self, index: int, settings: Settings, folder: Path, watermarks: Watermarks
    ) -> None:
        das = settings.das
        self.index, self._watermarks = index, watermarks
        self._windows_ms, self._bucket_ms = settings.windows_ms, das.bucket_ms
        self._longest_ms = self._windows_ms[-1]
        self._straggling = not settings.as_of  # live, an impression may come behind its bucket
        self._folder = SegmentFolder(folder / str(index))
        self._impressions = SegmentStore(self._folder, "impressions", impression_schema(settings))
        self._rules = LabelRules.of(settings)
        self._admission = Admission(
            self._folder, das.repeat_horizon_ms, found_by_id=bool(self._rules.waking)
        )
        self._labels = LabelJoin(self._folder, self._rules)
        self._policies = PolicyJoin(self._folder, self._rules, self._labels)
        self._predictions = PredictionJoin(self._folder, prediction_schema(settings))
        self._emitted = Emitted(self._folder, das.repeat_horizon_ms, self._rules)
        self._parts = (
            self._admission,
            self._labels,
            self._policies,
            self._predictions,
            self._emitted,
        )
        self._rows = ExampleRows(settings, index)
        self.done_ms = BEGIN_MS
        """Buckets that end here or before are closed."""
        self.total = 0
        """Examples ever emitted: the number of the next."""
        self._pending = 0
        self._halted = False
        self._gauges = ShardGauges(index, watermarks)
        self._spilling = Spilling(das.recovery_every_s)

    def take_rows(self, kind: str, rows: pa.Table) -> None:
        """Take rows in.

        Args:
            kind: impressions, labels or predictions.
            rows: of this shard, none of them late.
        """
        if kind == "impressions":
            self._take_impressions(rows)
        elif kind == "labels":
            DAS_TOO_LATE.labels(kind).inc(int((times(rows) < self._labels.floor_ms).sum()))
            self._labels.add(rows, self.done_ms)
        else:
            left_ms = self.done_ms - self._windows_ms[0]
            DAS_TOO_LATE.labels(kind).inc(self._predictions.num_new(rows, left_ms))
            self._predictions.add(rows)

    def take_watermark(self, source: Source, ts_ms: int) -> None:
        """No further row of `source` will precede `ts_ms`."""
        self._watermarks.advance(source, ts_ms)

    def take_standing(self, what: str, source: Source) -> None:
        """How far the partition of `source` was read, by the wall clock: see `Watermarks`.

        Args:
            what: behind, at_end or idle.
            source: of the partition.
        """
        ways = {
            "behind": self._watermarks.behind,
            "at_end": self._watermarks.at_end,
            "idle": self._watermarks.idle,
        }
        ways[what](source)

    def halt(self) -> None:
        """Close nothing from now on: an input has ended before its log."""
        self._halted = True

    def advance(self, now_s: float) -> list[Message]:
        """Close what the watermarks allow.

        Args:
            now_s: wall clock, for a live shard's ways out of waiting.

        Returns:
            Messages for `examples`, in order; none if no bucket closed.
        """
        self._gauges.refresh(self.done_ms, self._pending, now_s)
        if self._spilling.is_due(now_s):
            self._folder.spill()
        limit_ms = floor_ms(self._watermarks.minimum(self.done_ms, now_s), self._bucket_ms)
        if limit_ms <= self.done_ms or self._halted:
            return []
        found: list[Message] = []
        with DAS_CLOSE.time():
            while self.done_ms < limit_ms:
                rows = self._close(self._step(limit_ms))
                if rows.num_rows or self.done_ms == limit_ms:
                    through_ms = max(self.done_ms, self._emitted.through_ms)
                    found += messages(rows, self.index, self.total, through_ms)
        label = str(self.index)
        if limit_ms + self._bucket_ms <= END_MS:  # not where all logs have ended
            DAS_WATERMARK.labels(label).set(self.done_ms / 1000)
        DAS_PENDING.labels(label).set(self._pending)
        return found

    def save(self) -> dict[str, Any]:
        """State in plain data; rows in memory go to files first."""
        with DAS_SNAPSHOT.time():
            stores = {"impressions": self._impressions.save()}
            for part in self._parts:
                stores |= part.save()
        self._spilling.saved()
        self._folder.retire({f["name"] for s in stores.values() for f in s["files"]})
        num_bytes = sum(p.num_bytes for p in (self._impressions, *self._parts))
        DAS_SEGMENT_BYTES.labels(str(self.index)).set(num_bytes)
        open_ms = self.done_ms - self._longest_ms
        oldest_ms = self._impressions.oldest_since(open_ms)
        self._gauges.set(self.done_ms, self._pending, oldest_ms)
        return {
            "shard": self.index,
            "done_ms": self.done_ms,
            "open_ms": open_ms,  # no window of an earlier impression is open
            "total": self.total,
            "emitted_ms": self._emitted.through_ms,
            "pending": self._pending,
            "watermarks": [(*source, ts) for source, ts in self._watermarks.values.items()],
            "next_file": self._folder.number,
            "stores": stores,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `save` returned.

        Raises:
            SegmentError: a file is missing or damaged.
        """
        stores = state["stores"]
        named = [f["name"] for s in stores.values() for f in s["files"]]
        self._folder.resume(state["next_file"], named)
        self._impressions.restore(stores["impressions"])
        for part in self._parts:
            part.restore(stores)
        self.done_ms, self.total = state["done_ms"], state["total"]
        self._pending, self._emitted.through_ms = state["pending"], state["emitted_ms"]
        for kind, partition, ts_ms in state["watermarks"]:
            self._watermarks.advance((kind, partition), ts_ms)

    def clear(self) -> None:
        """Remove files of a start that never reached its first snapshot."""
        self._folder.resume(0, ())

    def recall(self, written: Written) -> None:
        """Go on behind what an earlier life wrote behind the snapshot; before anything closes."""
        self.total = max(self.total, written.following)
        self._emitted.recall(written)

    def _take_impressions(self, rows: pa.Table) -> None:
        behind = times(rows) < self.done_ms
        if behind.any():  # only after the wall clock left their partition out
            self._take_stragglers(rows.filter(pa.array(behind)))
            rows = rows.filter(pa.array(~behind))
        self._impressions.append(rows)
        self._pending += rows.num_rows

    def _take_stragglers(self, rows: pa.Table) -> None:
        """Take in what a window is still open of, and count the windows that the rows missed."""
        open_still = times(rows) + self._longest_ms >= self.done_ms
        over, rows = rows.filter(pa.array(~open_still)), rows.filter(pa.array(open_still))
        repeats = self._admission.admit(rows)
        DAS_REPEATS.labels("impressions").inc(int(repeats.sum()))
        late_N = np.concatenate([times(over)[~self._admission.known(over)], times(rows)[~repeats]])
        for window_ms in self._windows_ms:
            DAS_TOO_LATE.labels("impressions").inc(int((late_N + window_ms < self.done_ms).sum()))
        self._impressions.append(rows)
        self._policies.add_late(rows, self.done_ms)
        self._pending += rows.num_rows - int(repeats.sum())

    def _step(self, limit_ms: int) -> int:
        """End of the next buckets to close: `limit_ms`, or less where that would be too much."""
        while (
            limit_ms - self.done_ms > self._bucket_ms
            and sum(
                self._impressions.count(self.done_ms - w, limit_ms - w) for w in self._windows_ms
            )
            > MAX_CLOSE_ROWS
        ):
            middle_ms = floor_ms((limit_ms + self.done_ms) // 2, self._bucket_ms)
            limit_ms = max(middle_ms, floor_ms(self.done_ms, self._bucket_ms) + self._bucket_ms)
        return limit_ms

    def _close(self, limit_ms: int) -> pa.Table:
        """Examples of the buckets from `done_ms` to `limit_ms`."""
        arrived = self._impressions.between(self.done_ms, limit_ms)
        repeats = int(self._admission.admit(arrived).sum())
        DAS_REPEATS.labels("impressions").inc(repeats)
        parts = [self._closing(window_ms, limit_ms) for window_ms in self._windows_ms]
        self._pending -= repeats + parts[-1].num_rows
        examples = self._join(parts, limit_ms)
        keep_ms = self._rules.keep_ms
        over = parts[-1] if keep_ms == self._longest_ms else self._closing(keep_ms, limit_ms)
        before_ms = limit_ms - keep_ms
        self._predictions.forget(before_ms, over)
        self._labels.forget(before_ms)
        self._policies.forget(before_ms)
        self._emitted.forget(before_ms)
        to_come_ms = limit_ms - (self._straggling and self._longest_ms)
        self._admission.forget(to_come_ms, before_ms)
        self._impressions.forget(before_ms)
        self.done_ms, self.total = limit_ms, self.total + examples.num_rows
        return examples

    def _closing(self, window_ms: int, limit_ms: int) -> pa.Table:
        """Admitted impressions whose window closes in this step."""
        low_ms, high_ms = self.done_ms - window_ms, limit_ms - window_ms
        rows = self._impressions.between(low_ms, high_ms)
        return self._admission.without_repeats(rows, low_ms, high_ms)

    def _woken(self, limit_ms: int) -> pa.Table:
        """Admitted impressions that may have a row in this step though no window of them closes."""
        ids = self._policies.waking(self.done_ms, limit_ms)
        ts_N = self._admission.times_of(ids)
        ts_N = ts_N[(ts_N >= self.done_ms - self._rules.keep_ms) & (ts_N < limit_ms)]
        rows = rows_among(self._impressions.at(ts_N), "impression_id", ids)
        return self._admission.without_repeats_at(rows, ts_N)

    def _join(self, parts: list[pa.Table], limit_ms: int) -> pa.Table:
        woken = self._woken(limit_ms)
        impressions = pa.concat_tables([*parts, woken])
        if not impressions.num_rows:
            return self._rows.empty()
        items = self._items(impressions, [p.num_rows for p in parts])
        if self._rules.plain:
            due = items.drop(PLACE).with_row_index("row")
            found = self._labels.join(due, self.done_ms - self._longest_ms, limit_ms)
            leaving = plain(due.drop("row"), found, self._rules.ranks_T)
        else:
            ids = impressions.column("impression_id")
            leaving = self._policies.leaving(items, ids, self.done_ms, limit_ms)
        leaving = self._emitted.without(leaving).in_order()
        impressions = impressions.take(leaving.rows["at"].to_numpy())
        spans = [(self.done_ms - w, limit_ms - w) for w in self._windows_ms]
        found, at = self._predictions.join(impressions, spans, np.unique(times(woken)))
        return self._rows.build(impressions, leaving, found.take(at), self.total)

    def _items(self, impressions: pa.Table, closing: list[int]) -> pl.DataFrame:
        """What the join of labels reads: of each window those that close, then those woken."""
        num_woken = impressions.num_rows - sum(closing)
        rank = np.repeat([*range(len(closing)), WOKEN], [*closing, num_woken])
        items = pl.DataFrame(pl.from_arrow(impressions.select(["impression_id", "ts_ms", *PLACE])))
        windows_ms = np.array([*self._windows_ms, 0])  # of those woken: none
        closed_ms = items["ts_ms"].to_numpy() + windows_ms[rank]
        return (
            items.rename({"ts_ms": "shown_ms"})
            .with_columns(pl.Series("rank", rank), pl.Series("closed_ms", closed_ms))
            .with_row_index("at")
        )
