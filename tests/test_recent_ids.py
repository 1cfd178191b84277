"""Recent ids against a dict, and which impressions are admitted, over restarts."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from flows.join.admission import Admission, canonical
from flows.join.recent_ids import BITS_AN_ID, FAR, WORD_BITS, Filter, RecentIds, hashes
from flows.join.segment_folder import SegmentFolder
from flows.records import ADDRESS, BEGIN_MS

HORIZON_MS = 20
SCHEMA = pa.schema(
    [
        pa.field("impression_id", pa.string()),
        pa.field("ts_ms", pa.int64()),
        pa.field("content", pa.int64()),
        *ADDRESS,
    ]
)
Records = list[tuple[int, int, int]]
"""Ident, milliseconds behind the end of the rows judged before, content."""
STEPS = st.lists(
    st.tuples(
        st.lists(st.tuples(st.integers(0, 6), st.integers(0, 9), st.integers(0, 1)), max_size=12),
        st.sampled_from(("", "", "save", "restart", "crash")),
    ),
    max_size=25,
)


def places(rows: pa.Table) -> set[int]:
    return set(rows["offset"].to_pylist())


class Model:
    """Admission with a dict."""

    def __init__(self) -> None:
        self.newest: dict[str, int] = {}

    def admit(self, rows: pa.Table) -> set[int]:
        """Offsets of the admitted rows."""
        kept = set()
        for _, row in sorted(enumerate(rows.to_pylist()), key=canonical):
            ident, ts_ms = row["impression_id"], row["ts_ms"]
            if ts_ms - self.newest.get(ident, BEGIN_MS) >= HORIZON_MS:
                self.newest[ident] = ts_ms
                kept.add(row["offset"])
        return kept


@hypothesis_settings(max_examples=150, deadline=None)
@given(STEPS)
def test_admission_agrees_with_a_dict(steps: list[tuple[Records, str]]) -> None:
    with tempfile.TemporaryDirectory() as path:
        folder = SegmentFolder(Path(path))
        ours, model = Admission(folder, HORIZON_MS, found_by_id=False), Model()
        saved = ours.save(), folder.number, dict(model.newest)
        for n, (records, then) in enumerate(steps):
            low_ms, high_ms = 10 * n, 10 * n + 10
            found = [
                {"impression_id": f"i{i}", "ts_ms": low_ms + ms, "content": content}
                | {"partition": 0, "offset": 100 * n + at, "index": 0}
                for at, (i, ms, content) in enumerate(records)
            ]
            rows = pa.Table.from_pylist(found, SCHEMA)
            expected = model.admit(rows)
            repeats = ours.admit(rows)
            assert places(rows.filter(pa.array(~repeats))) == expected
            assert places(ours.without_repeats(rows, low_ms, high_ms)) == expected
            ours.forget(high_ms, low_ms)
            if then in ("save", "restart"):
                saved = ours.save(), folder.number, dict(model.newest)
            if then in ("restart", "crash"):
                state, number, newest = saved
                folder = SegmentFolder(Path(path))
                folder.resume(number, [f["name"] for s in state.values() for f in s["files"]])
                ours, model = Admission(folder, HORIZON_MS, found_by_id=False), Model()
                ours.restore(state)
                model.newest = dict(newest)


def test_records_of_many_ids_are_found(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    recent, known = RecentIds(SegmentFolder(tmp_path), "recent"), defaultdict[str, list[int]](list)
    for ts_ms in range(100):
        ids = [f"i{n}" for n in rng.choice(20_000, rng.integers(1, 400), replace=False)]
        recent.add(*hashes(pa.array(ids)), np.full(len(ids), ts_ms))
        for ident in ids:
            known[ident].append(ts_ms)
        if ts_ms % 20 == 10:
            recent.restore(recent.save())
    asked = [f"i{n}" for n in range(20_000)]
    now_N = rng.integers(0, 100, len(asked))
    found = recent.distance(*hashes(pa.array(asked)), now_N)
    for ident, now_ms, distance_ms in zip(asked, now_N.tolist(), found.tolist(), strict=True):
        assert distance_ms == min((abs(ts - now_ms) for ts in known[ident]), default=FAR)
    few = asked[:3]
    assert recent.times_of(pa.array(few)).tolist() == sorted({t for i in few for t in known[i]})
    assert recent.times_of(pa.array([], pa.string())).tolist() == []


def test_ids_that_share_half_a_hash_stay_apart(tmp_path: Path) -> None:
    recent = RecentIds(SegmentFolder(tmp_path), "recent")
    high_N, low_N = np.full(4, 7, dtype=np.uint64), np.arange(4, dtype=np.uint64)
    recent.add(high_N[:3], low_N[:3], np.array([1, 2, 3]))
    recent.add(high_N[:1], low_N[:1], np.array([9]))
    assert recent.distance(high_N, low_N, np.full(4, 8)).tolist() == [1, 6, 5, FAR]


def test_late_record_repeats_what_was_admitted_close_by_and_nothing_else(tmp_path: Path) -> None:
    def row(ident: str, ts_ms: int, offset: int) -> dict[str, object]:
        place = {"partition": 0, "offset": offset, "index": 0}
        return {"impression_id": ident, "ts_ms": ts_ms, "content": 0, **place}

    def table(*rows: dict[str, object]) -> pa.Table:
        return pa.Table.from_pylist(list(rows), SCHEMA)

    admission = Admission(SegmentFolder(tmp_path), HORIZON_MS, found_by_id=True)
    assert admission.admit(table(row("a", 500, 0), row("b", 500, 1))).tolist() == [False, False]
    late = table(row("a", 100, 2), row("b", 481, 3), row("a", 119, 4), row("c", 500, 5))
    assert admission.known(late).tolist() == [False, True, False, False]
    assert admission.admit(late).tolist() == [False, True, True, False]
    assert admission.times_of(pa.array(["a", "c"])).tolist() == [100, 500]


def test_filter_passes_what_it_holds_and_little_else() -> None:
    rng = np.random.default_rng(4)
    values_N: Any = rng.integers(0, 2**64, 200_000, dtype=np.uint64)
    filter_ = Filter(50_000)
    assert filter_.has_room(100_000)
    assert not filter_.has_room(WORD_BITS * len(filter_._words) // BITS_AN_ID + 1)
    filter_.add(values_N[:100_000])
    assert filter_.might_hold(values_N[:100_000]).all()
    assert filter_.might_hold(values_N[100_000:]).mean() < 1 / 80
    num_more = WORD_BITS * len(filter_._words) // BITS_AN_ID - 100_000
    filter_.add(rng.integers(0, 2**64, num_more, dtype=np.uint64))
    assert not filter_.has_room(1)
    others_N = rng.integers(0, 2**64, 200_000, dtype=np.uint64)
    assert filter_.might_hold(others_N).mean() < 1 / 58
