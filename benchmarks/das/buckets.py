"""What closing a bucket costs, the more impressions wait: it should not depend on their number.

A window of a day, a thousand impressions a second of event time, a label on one in twenty, ten
minutes later. With few and with many pending, buckets of one second are closed one by one, for
tasks without a policy and for one whose positives leave early and whose late labels correct.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa

from benchmarks.das.events import BEGIN_MS, settings
from benchmarks.das.figures import Figure, at_most
from benchmarks.das.memory import BATCH, DAY_S, ROWS_A_SECOND, SHARDS, Join, batches
from benchmarks.das.part import say
from flows.join.label_join import ARRIVING
from flows.records import ADDRESS
from flows.settings import Settings, Task

MORE = 5
"""Times as many impressions wait in the second measurement."""
CLOSED = 30
"""Buckets of which the median is told."""
CLICKS = 0.05
DELAY_MS = 600_000
MOST_GROWTH = 3.0
KINDS = {
    "no policy": Task(name="click", window_s=DAY_S),
    "early and correcting": Task(name="click", window_s=DAY_S, early=True, late_labels="correct"),
}


def run(rows: int, work_folder: Path) -> list[Figure]:
    """Measure with `rows` impressions pending and with more; the folder plays no role."""
    found = []
    for name, task in KINDS.items():
        few_ms, many_ms = (closing_ms(configured(task), num) for num in (rows, MORE * rows))
        found.append(
            at_most(
                f"Closing a bucket, {MORE * rows:,} pending over {rows:,}, {name}",
                many_ms / few_ms,
                "x",
                MOST_GROWTH,
                f"{few_ms:.1f} and {many_ms:.1f} ms for {ROWS_A_SECOND:,} impressions and "
                f"{round(CLICKS * ROWS_A_SECOND)} labels in {SHARDS} shards",
            )
        )
    return found


def configured(task: Task) -> Settings:
    """The benchmark's settings with that task alone."""
    base = settings(SHARDS)
    das = base.das.model_copy(update={"correction_horizon_s": 3600.0})
    return base.model_copy(update={"tasks": (task,), "das": das})


def closing_ms(config: Settings, rows: int) -> float:
    """Milliseconds of a bucket behind `rows` impressions, all of them pending."""
    say(f"{rows:,} pending")
    with tempfile.TemporaryDirectory() as folder:
        join = Join(config, Path(folder))
        stream = batches(config, rows + CLOSED * ROWS_A_SECOND + BATCH)
        number = 0
        while number < rows:
            impressions, predictions = next(stream)
            arrive(join, impressions, predictions)
            number += impressions.num_rows
            join.pass_time(BEGIN_MS + number * 1000 // ROWS_A_SECOND, 0.0)
            if number % (64 * BATCH) == 0:
                for shard in join.shards:
                    shard.save()
        later = [next(stream) for _ in range(-(-CLOSED * ROWS_A_SECOND // BATCH))]
        for impressions, predictions in later:
            arrive(join, impressions, predictions)
        took_s = []
        for bucket in range(1, CLOSED + 1):
            ts_ms = BEGIN_MS + number * 1000 // ROWS_A_SECOND + 1000 * bucket
            began_s = time.perf_counter()
            join.pass_time(ts_ms, 0.0)
            took_s.append(time.perf_counter() - began_s)
    return 1000 * median(took_s)


def arrive(join: Join, impressions: pa.Table, predictions: pa.Table) -> None:
    """Take in impressions, their predictions, and labels of earlier ones."""
    join.take("impressions", impressions)
    join.take("predictions", predictions)
    join.take("labels", labels(impressions))


def labels(impressions: pa.Table) -> pa.Table:
    """Clicks at the time of some impressions, on those of ten minutes before."""
    step = round(1 / CLICKS)
    chosen = impressions.take(pa.array(np.arange(0, impressions.num_rows, step)))
    shown_N = chosen["offset"].to_numpy() - DELAY_MS * ROWS_A_SECOND // 1000
    ids = [f"{number:020d}" for number in np.maximum(shown_N, 0).tolist()]
    num = len(ids)
    columns = {
        "impression_id": ids,
        "task": np.zeros(num, np.int16),
        "value": np.ones(num, np.int8),
        "ts_ms": chosen["ts_ms"],
        **{field.name: chosen[field.name] for field in ADDRESS},
    }
    return pa.table(columns).select(ARRIVING.names).cast(ARRIVING)
