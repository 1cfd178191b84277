"""Shards over workers."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import nullcontext
from typing import Any

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.operators import StatefulBatchLogic
from bytewax.testing import TestingSink, TestingSource, cluster_main

from flows.join.routing import insist_on_shards, shard_key, shard_of_key
from flows.settings import SettingsError


class Worker(StatefulBatchLogic[int, int, None]):
    """Says which thread it runs in."""

    def on_batch(self, values: list[int]) -> tuple[list[int], bool]:
        """A thread id for each value."""
        return [threading.get_ident() for _ in values], False

    def snapshot(self) -> None:
        """Nothing."""


def workers_of(shards: int, workers: int) -> dict[int, int]:
    """Thread of each shard."""
    found: list[Any] = []
    flow = Dataflow("route")
    items = [(shard_key(shard), shard) for shard in range(shards)]
    keyed = op.input("in", flow, TestingSource(items))
    seen = op.stateful_batch("worker", keyed, lambda _: Worker())
    op.output("out", seen, TestingSink(found))
    cluster_main(flow, [], 0, worker_count_per_proc=workers)
    return {shard_of_key(key): worker for key, worker in found}


@pytest.mark.parametrize("workers", [2, 3, 4])
def test_workers_get_equally_many_shards(workers: int) -> None:
    of_shard = workers_of(24, workers)
    assert sorted(of_shard) == list(range(24))
    for first in range(0, 24, workers):  # consecutive shards, so that few are even, too
        assert len({of_shard[shard] for shard in range(first, first + workers)}) == workers
    assert set(Counter(of_shard.values()).values()) == {24 // workers}


@pytest.mark.parametrize("shards", [4, 5, 6, 8, 11])
def test_worker_without_a_shard_is_refused(shards: int) -> None:
    """As Bytewax deals the shards out."""
    idle = len(set(workers_of(shards, 5).values())) < 5
    told = rf"das.shards = {shards} leave some of 5 workers .* start [34]( or [678])?$"
    with pytest.raises(SettingsError, match=told) if idle else nullcontext():
        insist_on_shards(shards, 5)


def test_numbers_of_workers_that_do() -> None:
    for shards, workers in ((4, 1), (4, 2), (4, 3), (4, 4), (24, 12), (7, 6), (6, 6)):
        insist_on_shards(shards, workers)
    with pytest.raises(SettingsError, match=r"start 4$"):
        insist_on_shards(4, 40)


def test_keys_tell_their_shard() -> None:
    assert [shard_of_key(shard_key(shard)) for shard in range(500)] == list(range(500))
