"""The wall clock publishes only in a stream that stands still."""

from __future__ import annotations

import pytest

from flows.learning.quiet import QuietStream
from tests.hand_clock import Clock

EVERY_MS = 60_000
BUCKET_MS = 5_000


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_stream_is_quiet_after_an_interval_without_a_boundary(clock: Clock) -> None:
    quiet = QuietStream(EVERY_MS, BUCKET_MS, clock)
    assert not quiet.overdue(130_000)
    for after_s, claim in ((59.0, False), (60.0, True), (600.0, True)):
        clock.now_s = 1000.0 + after_s
        assert quiet.overdue(130_000) is claim
    assert not quiet.overdue(135_000)  # it moves again
    clock.now_s += 11.0
    assert quiet.overdue(135_000)
    assert not quiet.overdue(180_000)
    clock.now_s += 11.0
    assert not quiet.overdue(180_000)  # a boundary was passed


def test_stream_that_flows_is_never_quiet(clock: Clock) -> None:
    quiet = QuietStream(EVERY_MS, BUCKET_MS, clock)
    for step in range(1000):
        clock.now_s += 0.5 if step % 2 else 6.5  # late buckets, and a clock that drifts
        assert not quiet.overdue(step // 2 * BUCKET_MS)
