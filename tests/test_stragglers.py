"""A shard is passed over by the wall clock, and only where its lag is its own fault."""

from __future__ import annotations

import pytest

from flows.learning.stragglers import Stragglers
from flows.records import BEGIN_MS, END_MS

GRACE_S = 30.0
ALL_READ = [True, True, True]


@pytest.fixture
def stragglers() -> Stragglers:
    """After a minute in which shard 2 stood still at 5, and the others did 1 ms a second."""
    stragglers = Stragglers(GRACE_S)
    for second in range(10, 30):
        marks = [second, second - 1, 5]
        assert stragglers.among(marks, ALL_READ, 5, float(second)) == set()
    for second in range(30, 71):
        stragglers.among([second, second - 1, 5], ALL_READ, 5, float(second))
    return stragglers


def test_shard_that_lags_longer_than_the_grace_is_left_out(stragglers: Stragglers) -> None:
    assert stragglers.among([71, 70, 5], ALL_READ, 5, 71.0) == {2}


def test_shard_that_is_alive_but_too_far_behind_is_left_out(stragglers: Stragglers) -> None:
    assert stragglers.among([71, 70, 40], ALL_READ, 5, 71.0) == {2}
    assert stragglers.among([71, 70, 41], ALL_READ, 5, 71.0) == set()


def test_shard_rejoins_once_it_has_caught_up(stragglers: Stragglers) -> None:
    assert stragglers.among([71, 70, 69], ALL_READ, 70, 71.0) == {2}
    assert stragglers.among([71, 70, 70], ALL_READ, 70, 71.0) == set()


def test_shard_whose_messages_wait_to_be_read_is_waited_for(stragglers: Stragglers) -> None:
    assert stragglers.among([71, 70, 5], [True, True, False], 5, 71.0) == set()


def test_shard_is_waited_for_while_no_other_goes_on(stragglers: Stragglers) -> None:
    assert stragglers.among([70, 69, 5], ALL_READ, 5, 1000.0) == set()
    assert stragglers.among([70, 69, 5], [False, True, True], 5, 1000.0) == {1, 2}
    assert stragglers.among([END_MS, END_MS, 5], ALL_READ, 5, 1000.0) == set()


def test_shards_are_not_judged_at_the_beginning() -> None:
    stragglers = Stragglers(GRACE_S)
    assert stragglers.among([BEGIN_MS] * 3, ALL_READ, BEGIN_MS, 1e6) == set()
    assert stragglers.among([7, BEGIN_MS, BEGIN_MS], ALL_READ, BEGIN_MS, 1e6) == set()
