"""How far a shard may close: by the log alone, and live with two ways out of waiting."""

from __future__ import annotations

import pytest

from flows.join.watermarks import PatientWatermarks, Watermarks, sources
from flows.records import BEGIN_MS, END_MS
from monitoring.metrics import DAS_LEFT_OUT

GRACE_S = 10.0
IMPRESSIONS, FM, LABELS = ("impressions", 0), ("fm", 0), ("labels", 0)


def left_out(way: str) -> float:
    child = DAS_LEFT_OUT.labels(way)
    return float(child._value.get())


@pytest.fixture
def live() -> PatientWatermarks:
    return PatientWatermarks(sources(1, 1), GRACE_S)


def test_slowest_source_counts_and_none_goes_back() -> None:
    watermarks = Watermarks(sources(2, 1))
    assert watermarks.minimum(BEGIN_MS, 0.0) == BEGIN_MS
    for rank, source in enumerate(watermarks.values):
        watermarks.advance(source, 100 + rank)
        watermarks.advance(source, 50)
    assert watermarks.minimum(BEGIN_MS, 1e9) == 100


def test_dead_teacher_is_waited_for_as_long_as_the_grace(live: PatientWatermarks) -> None:
    before = left_out("silent_teacher")
    live.advance(IMPRESSIONS, 5000)
    live.advance(LABELS, 6000)
    assert live.minimum(BEGIN_MS, 0.0) == BEGIN_MS
    assert live.minimum(BEGIN_MS, 9.9) == BEGIN_MS
    assert live.minimum(BEGIN_MS, 10.0) == 5000
    live.advance(IMPRESSIONS, 5500)
    assert live.minimum(5000, 10.1) == 5500
    assert left_out("silent_teacher") == before + 1


def test_slow_teacher_is_judged_by_what_was_wanted_a_grace_ago(live: PatientWatermarks) -> None:
    done = BEGIN_MS
    for second in range(60):  # a second behind all the time: never left out
        live.advance(IMPRESSIONS, 1000 * second)
        live.advance(LABELS, 1000 * second)
        live.advance(FM, 1000 * second - 1000)
        assert live.minimum(done, float(second)) == 1000 * second - 1000
        done = 1000 * second - 1000
    for second in range(60, 90):  # half as fast as the impressions: falls behind by the grace
        live.advance(IMPRESSIONS, 1000 * second)
        live.advance(LABELS, 1000 * second)
        live.advance(FM, 59_000 + 500 * (second - 60))
        done = max(done, live.minimum(done, float(second)))
    assert done == 89_000
    live.advance(FM, 88_999)
    assert live.minimum(done, 90.0) == done
    live.advance(IMPRESSIONS, 95_000)
    live.advance(LABELS, 95_000)
    live.advance(FM, 90_000)  # caught up: counts again
    assert live.minimum(done, 90.0) == 90_000


def test_idle_partition_is_left_out_until_it_has_caught_up() -> None:
    live = PatientWatermarks(sources(2, 1), GRACE_S)
    for source in live.values:
        live.advance(source, 1000)
    live.advance(IMPRESSIONS, 9000)
    live.advance(FM, 9000)
    live.advance(LABELS, 8000)
    assert live.minimum(1000, 0.0) == 1000
    live.idle(("impressions", 1))
    assert live.minimum(1000, 0.0) == 8000
    live.advance(("impressions", 1), 7000)  # behind what is closed: does not hold the others
    live.advance(("fm", 1), 7000)
    live.advance(LABELS, 8500)
    assert live.minimum(8000, 10.0) == 8500
    live.advance(("impressions", 1), 8600)
    live.advance(("fm", 1), 8600)
    live.advance(LABELS, 9000)
    assert live.minimum(8500, 10.0) == 8600


def test_partition_that_may_hold_more_is_waited_for_behind_what_is_closed() -> None:
    """In a new life nobody knows what was written to it meanwhile."""
    before = PatientWatermarks(sources(1, 2), GRACE_S)
    before.advance(IMPRESSIONS, 9000)
    before.advance(FM, 9000)
    before.advance(LABELS, 9000)
    before.advance(("labels", 1), 1000)
    assert before.minimum(BEGIN_MS, 0.0) == 1000
    before.idle(("labels", 1))
    assert before.minimum(1000, 0.0) == 9000
    live = PatientWatermarks(sources(1, 2), GRACE_S)
    for source, ts_ms in before.values.items():
        live.advance(source, ts_ms)
    live.advance(IMPRESSIONS, 20_000)
    live.advance(FM, 20_000)
    live.advance(LABELS, 20_000)
    assert live.minimum(9000, 0.0) == 1000
    live.advance(("labels", 1), 8000)
    assert live.minimum(9000, 0.0) == 8000
    live.advance(("labels", 1), 15_000)
    assert live.minimum(9000, 0.0) == 15_000
    live.idle(("labels", 1))
    live.advance(("labels", 1), 16_000)
    assert live.minimum(18_000, 0.0) == 20_000  # read to its end: goes on behind
    live.behind(("labels", 1))
    assert live.minimum(18_000, 0.0) == 16_000
    live.at_end(("labels", 1))
    assert live.minimum(18_000, 0.0) == 20_000


def test_when_all_are_idle_what_was_read_is_closed(live: PatientWatermarks) -> None:
    live.advance(IMPRESSIONS, 3000)
    live.advance(FM, 3000)
    live.idle(IMPRESSIONS)
    assert live.minimum(BEGIN_MS, 0.0) == BEGIN_MS
    live.idle(LABELS)
    assert live.minimum(BEGIN_MS, 0.0) == 3000
    live.advance(LABELS, END_MS)
    assert live.minimum(3000, 0.0) == 3000
    live.advance(IMPRESSIONS, END_MS)
    live.advance(FM, END_MS)
    assert live.minimum(3000, 0.0) == END_MS
