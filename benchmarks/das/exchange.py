"""What rows cost that go to another process: bytes and time beside the Arrow size of the rows.

Between processes, Bytewax pickles each item. A slice of an Arrow table would carry the buffers of
the whole table with it; `rows_by_shard` makes new ones, which this shows.
"""

from __future__ import annotations

import pickle
import time
from pathlib import Path
from typing import Any

from benchmarks.das import events
from benchmarks.das.figures import Figure, at_most
from flows.join.sources import rows_by_shard
from flows.records import prediction_schema

BATCH = 8192
ROUNDS = 20
MOST_OVERHEAD = 1.05


def run(rows: int, work_folder: Path) -> list[Figure]:
    """Measure on one read of a partition; `rows` and the folder play no role."""
    settings = events.settings()
    times_N, _ = events.times(BATCH)
    batches = {
        "impressions": events.impressions(0, times_N).to_arrow(),
        "predictions": events.predictions(0, times_N)
        .to_arrow()
        .select(prediction_schema(settings).names)
        .cast(prediction_schema(settings)),
    }
    found = []
    for kind, table in batches.items():
        items = rows_by_shard(kind, table, settings.das.shards)
        held = sum(item[1][3].nbytes for item in items)
        began_s = time.process_time()
        for _ in range(ROUNDS):
            pickled = [pickle.dumps(item, pickle.HIGHEST_PROTOCOL) for item in items]
            _unpickled: list[Any] = [pickle.loads(data) for data in pickled]
        us = 1e6 * (time.process_time() - began_s) / (ROUNDS * BATCH)
        found.append(
            at_most(
                f"Exchange, {kind}, pickled over Arrow bytes",
                sum(map(len, pickled)) / held,
                "x",
                MOST_OVERHEAD,
                f"{held / BATCH:.0f} bytes a row in Arrow, {settings.das.shards} shards; "
                f"both ways {us:.2f} us of CPU a row",
            )
        )
    return found
