"""Quality of a stream against plain NumPy, however it is cut into batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from flows.learning.quality import Quality, Scored
from flows.learning.quality_report import document
from flows.learning.timeline import Timeline
from flows.learning.training_rows import Rows

Array = np.ndarray[Any, np.dtype[Any]]
EVERY_MS = 1000


def rows_at(rng: np.random.Generator, ts_B: Array) -> Rows:
    num = len(ts_B)
    covered = (ts_B > 3000) & (rng.random(num) < 0.8)
    return Rows(
        ids_BF=np.zeros((num, 1), np.int64),
        sequence_BL=np.zeros((num, 0), np.int64),
        numeric_BN=np.zeros((num, 0), np.float32),
        labels_BT=(rng.random((num, 1)) < 0.3).astype(np.float32),
        mask_BT=rng.random((num, 1)) < 0.9,
        teacher_BT=np.where(covered, rng.normal(size=num), np.nan)[:, None].astype(np.float32),
        oracle_BT=np.full((num, 1), 0.3),
        ts_B=ts_B,
        closed_B=ts_B + 10,
        first_B=rng.random(num) < 0.95,
        user_B=rng.integers(0, 5, num),
    )


def scored_stream(seed: int, num: int) -> Scored:
    rng = np.random.default_rng(seed)
    ts_B = np.sort(rng.integers(0, 30_000, num))
    served = np.where(ts_B > 1500, rng.normal(size=num), np.nan)[:, None].astype(np.float32)
    return Scored(
        rows=rows_at(rng, ts_B),
        served=served,
        served_shadow=served + np.float32(0.1),
        live=rng.normal(size=(num, 1)).astype(np.float32),
        live_shadow=rng.normal(size=(num, 1)).astype(np.float32),
    )


def cut(scored: Scored, start: int, stop: int) -> Scored:
    part = slice(start, stop)
    assert scored.served_shadow is not None
    assert scored.live_shadow is not None
    return Scored(
        rows=scored.rows.take(part),
        served=scored.served[part],
        served_shadow=scored.served_shadow[part],
        live=scored.live[part],
        live_shadow=scored.live_shadow[part],
    )


def ne(logits: Array, labels: Array) -> float:
    chances = 1 / (1 + np.exp(-logits.astype(np.float64)))
    loss = -np.where(labels == 1, np.log(chances), np.log(1 - chances)).mean()
    rate = labels.astype(np.float64).mean()
    return float(loss / -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate)))


def test_totals_agree_with_numpy_over_the_last_two_thirds() -> None:
    scored = scored_stream(1, 2000)
    quality = Quality(["click"], EVERY_MS, has_shadow=True)
    for start in range(0, 2000, 64):
        quality.observe(cut(scored, start, start + 64))
    totals = document("m", ["feed"], quality, has_users=True)["totals"]["click"]
    rows = scored.rows
    late = rows.ts_B >= 10_000
    assert totals["since_ms"] == 10_000
    chosen = late & rows.mask_BT[:, 0] & rows.first_B
    labels, teacher = rows.labels_BT[:, 0], rows.teacher_BT[:, 0]
    assert scored.served_shadow is not None
    student, shadow = scored.served[:, 0], scored.served_shadow[:, 0]
    assert totals["n"] == chosen.sum()
    assert totals["ne"]["student"] == pytest.approx(ne(student[chosen], labels[chosen]))
    assert totals["ne"]["shadow"] == pytest.approx(ne(shadow[chosen], labels[chosen]))
    gain = 1 - totals["ne"]["student"] / totals["ne"]["shadow"]
    assert totals["gain"] == pytest.approx(gain)
    covered = chosen & np.isfinite(teacher)
    assert totals["n_covered"] == covered.sum()
    assert totals["ne_covered"]["fm"] == pytest.approx(ne(teacher[covered], labels[covered]))
    assert totals["coverage"] == pytest.approx(covered.sum() / chosen.sum())
    taught = (
        (rows.ts_B >= 4000) & rows.mask_BT[:, 0] & rows.first_B
    )  # the first is at 3001 or later
    share = (taught & np.isfinite(teacher)).sum() / taught.sum()
    assert totals["coverage_after_first"] == pytest.approx(share)
    assert 0.4 < totals["auc"]["student"] < 0.6
    assert 0.4 < totals["gauc"]["fm"] < 0.6


def test_state_goes_on_where_it_was() -> None:
    scored = scored_stream(2, 600)
    whole = Quality(["click"], EVERY_MS, has_shadow=True)
    first = Quality(["click"], EVERY_MS, has_shadow=True)
    second = Quality(["click"], EVERY_MS, has_shadow=True)
    for start in range(0, 600, 50):
        whole.observe(cut(scored, start, start + 50))
        if start == 300:
            second.load_state(first.state())
        (first if start < 300 else second).observe(cut(scored, start, start + 50))
    expected = document("m", [], whole, has_users=True)
    assert document("m", [], second, has_users=True) == expected


def test_rows_before_the_first_snapshot_are_not_compared() -> None:
    scored = scored_stream(3, 500)
    quality = Quality(["click"], EVERY_MS, has_shadow=True)
    quality.observe(scored)
    intervals = document("m", [], quality, has_users=False)["intervals"]
    assert intervals[0]["interval_start_ms"] == 0
    assert intervals[0]["n"] == 0
    assert intervals[0]["progressive_n"] > 0


def add(into: Array, other: Array) -> None:
    into += other


@pytest.mark.parametrize("step", [1, 7, 400])
def test_timeline_merges_to_the_same_intervals_however_events_are_cut(step: int) -> None:
    ts_ms = np.random.default_rng(4).integers(0, 100_000, 400)
    timeline: Timeline[Array] = Timeline(100, 16, lambda: np.zeros(1), add)
    for start in range(0, 400, step):
        part = ts_ms[start : start + step]
        for sums, mine in timeline.of(part):
            sums += len(mine)
    width = timeline.width_ms
    assert len(timeline.values) <= 16 < len(np.unique(ts_ms // (width // 2)))
    expected = dict(zip(*np.unique(ts_ms // width * width, return_counts=True), strict=True))
    assert {start: sums[0] for start, sums in timeline.items()} == expected
