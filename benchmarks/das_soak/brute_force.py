"""What a log means, computed from the whole of it at once: the examples, and what is set aside."""

from __future__ import annotations

import polars as pl
import pyarrow as pa

from benchmarks.das_soak.log import SoakLog
from flows.records import example_schema, impression_schema, prediction_schema
from tests.test_shard import Case, Row, reference

PLACE = ["partition", "offset"]


def expected_examples(log: SoakLog) -> pa.Table:
    """All examples by shard and running number: the brute-force join of the property tests."""
    settings = log.settings
    cut = [
        pl.col(f.name).list.head(f.max_length) for f in settings.features if f.kind == "sequence"
    ]
    positions = {task.name: n for n, task in enumerate(settings.tasks)}
    impressions = log.impressions.with_columns(cut)
    labels = log.labels.with_columns(pl.col("task").replace_strict(positions, default=None))
    case = Case(
        settings,
        [records(impressions, impression_schema(settings).names)],
        [records(labels, ["impression_id", "task", "value", "ts_ms"])],
        [
            [
                (row, 0)
                for row in log.predictions.select(prediction_schema(settings).names).to_dicts()
            ]
        ],
    )
    shards = sorted(reference(case).items())
    rows = [row for _, examples in shards for row in examples]
    return pa.Table.from_pylist(rows, schema=example_schema(settings))


def records(frame: pl.DataFrame, names: list[str]) -> list[tuple[Row, int]]:
    """Records on time with their places; the reference asks for no watermark."""
    on_time = frame.filter(pl.col("on_time")).with_columns(index=pl.lit(0))
    chosen = dict.fromkeys([*names, *PLACE, "index"])
    return [(row, 0) for row in on_time.select(*chosen).to_dicts()]


def expected_dead_letters(log: SoakLog) -> set[tuple[str, int, int, bytes]]:
    """Topic, partition, offset and bytes of each message that is broken or late."""
    topics, found = log.settings.topics, set()
    both = ((topics.impressions.name, log.impressions), (topics.labels.name, log.labels))
    for topic, frame in both:
        aside = frame.filter(pl.col("is_broken") | ~pl.col("on_time"))
        found |= {(topic, *row) for row in aside.select(*PLACE, "message").iter_rows()}
    return found
