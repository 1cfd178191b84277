"""A trainer says which examples are missing, waits for them for a while, and then stops."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flows.learning.gaps import WAIT_S, ExamplesMissing, Gap, GapWatch
from monitoring.metrics import TRAIN_GAPS
from tests.hand_clock import Clock

GAP = Gap(shard=1, expected=10, found=15, partition=0, offset=7)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def counted(model: str) -> float:
    return float(TRAIN_GAPS.labels(model)._value.get())


def test_gap_is_told_and_counted_once(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    watch, before = GapWatch("once", "examples", clock), counted("once")
    for expected in (10, 11, 11, 12):
        watch.look({replace(GAP, expected=expected): False})
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    said = record.getMessage()
    assert (
        "topic 'examples' partition 0 offset 7: shard 1 goes on at number 15, expected 10" in said
    )
    assert "exfm backfill --topic" in said
    watch.look({})
    watch.look({replace(GAP, shard=0): False})
    assert len(caplog.records) == 2
    assert counted("once") == before + 2


def test_gap_that_nobody_fills_stops_the_trainer(clock: Clock) -> None:
    watch = GapWatch("model", "examples", clock)
    watch.look({GAP: False})
    clock.now_s = 10 * WAIT_S  # there is more to read, which may fill it
    watch.look({GAP: True})
    clock.now_s += WAIT_S - 1
    watch.look({GAP: False})
    clock.now_s += 1
    with pytest.raises(ExamplesMissing, match=r"5 examples are missing, and nobody wrote them"):
        watch.look({GAP: False})


def test_gap_that_is_being_filled_is_waited_for(clock: Clock) -> None:
    watch = GapWatch("model", "examples", clock)
    for expected in range(10, 15):
        watch.look({replace(GAP, expected=expected): True})
        clock.now_s += WAIT_S - 1
    watch.look({})
    watch.look({GAP: True})
    clock.now_s += WAIT_S - 1
    watch.look({GAP: True})
    clock.now_s += 1
    with pytest.raises(ExamplesMissing):  # it stood still for as long
        watch.look({GAP: True})
