"""Shards over workers."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.operators import StatefulBatchLogic
from bytewax.testing import TestingSink, TestingSource, cluster_main

from flows.routing import shard_key, shard_of_key


class Worker(StatefulBatchLogic[int, int, None]):
    """Says which thread it runs in."""

    def on_batch(self, values: list[int]) -> tuple[list[int], bool]:
        """A thread id for each value."""
        return [threading.get_ident() for _ in values], False

    def snapshot(self) -> None:
        """Nothing."""


@pytest.mark.parametrize("workers", [2, 3, 4])
def test_workers_get_equally_many_shards(workers: int) -> None:
    found: list[Any] = []
    flow = Dataflow("route")
    items = [(shard_key(shard), shard) for shard in range(24)]
    keyed = op.input("in", flow, TestingSource(items))
    seen = op.stateful_batch("worker", keyed, lambda _: Worker())
    op.output("out", seen, TestingSink(found))
    cluster_main(flow, [], 0, worker_count_per_proc=workers)
    of_shard = {shard_of_key(key): worker for key, worker in found}
    assert sorted(of_shard) == list(range(24))
    for first in range(0, 24, workers):  # consecutive shards, so that few are even, too
        assert len({of_shard[shard] for shard in range(first, first + workers)}) == workers
    assert set(Counter(of_shard.values()).values()) == {24 // workers}


def test_keys_tell_their_shard() -> None:
    assert [shard_of_key(shard_key(shard)) for shard in range(500)] == list(range(500))
