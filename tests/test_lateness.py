"""Lateness against the rule, record by record."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.events.lateness import Lateness
from flows.records import BEGIN_MS, END_MS


@given(
    ts=st.lists(st.integers(0, 100), max_size=60),
    lateness=st.integers(0, 30),
    cuts=st.lists(st.integers(0, 60), max_size=4),
)
def test_judging_in_any_batches_follows_the_rule(
    ts: list[int], lateness: int, cuts: list[int]
) -> None:
    expected, newest = [], BEGIN_MS
    for value in ts:
        expected.append(value >= newest - lateness)
        newest = max(newest, value) if expected[-1] else newest
    state, found = BEGIN_MS, []
    edges = [0, *sorted(min(cut, len(ts)) for cut in cuts), len(ts)]
    for start, stop in pairwise(edges):
        judge = Lateness(lateness, state)  # resumed from a checkpoint each time
        found += judge.judge(np.array(ts[start:stop], dtype=np.int64)).tolist()
        state = judge.running_max_ms
    assert (found, state) == (expected, newest)


def test_watermark_trails_the_newest_record() -> None:
    judge = Lateness(5)
    assert judge.watermark_ms == BEGIN_MS
    judge.judge(np.array([100, 90], dtype=np.int64))
    assert judge.watermark_ms == 95
    judge.end()
    assert judge.watermark_ms == END_MS


def test_negative_lateness_is_refused() -> None:
    with pytest.raises(ValueError, match="lateness_ms must be at least 0, got -1"):
        Lateness(-1)
