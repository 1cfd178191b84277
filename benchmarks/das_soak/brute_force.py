"""What a log means, computed from the whole of it at once: the examples, and what is set aside."""

from __future__ import annotations

import polars as pl
import pyarrow as pa

from benchmarks.das_soak.log import SoakLog
from flows.records import example_schema, shard_of
from flows.settings import Settings, Task

PLACE = ["partition", "offset"]


def expected_examples(log: SoakLog) -> pa.Table:
    """All examples by shard and running number."""
    settings = log.settings
    admitted = admitted_impressions(log)
    windows = []
    for rank, window_ms in enumerate(settings.windows_ms):
        rows = admitted.with_columns(
            closed_ts_ms=pl.col("ts_ms") + window_ms,
            rank=pl.lit(rank),
            **{f"mask_{t.name}": pl.lit(t.window_ms == window_ms) for t in settings.tasks},
        )
        windows.append(rows)
    rows = with_predictions(pl.concat(windows), log)
    for task in settings.tasks:
        rows = with_label(rows, task, log)
    shard = shard_of(rows["impression_id"].to_arrow(), settings.das.shards)
    rows = (
        rows.with_columns(shard=pl.Series(shard, dtype=pl.Int16), correction=pl.lit(0, pl.Int16))
        .sort("shard", "closed_ts_ms", "impression_id", "rank")
        .with_columns(number=pl.int_range(pl.len(), dtype=pl.Int64).over("shard"))
    )
    return in_columns(rows, settings)


def admitted_impressions(log: SoakLog) -> pl.DataFrame:
    """Records on time that repeat no other within the horizon; sequences cut to their length."""
    settings, recent = log.settings, dict[str, int]()
    records = log.impressions.filter(pl.col("on_time")).sort("ts_ms", "impression_id", *PLACE)
    kept = []
    for row, (ident, ts_ms) in enumerate(records.select("impression_id", "ts_ms").iter_rows()):
        before_ms = recent.get(ident)
        if before_ms is None or ts_ms - before_ms >= settings.das.repeat_horizon_ms:
            recent[ident] = ts_ms
            kept.append(row)
    cut = [
        pl.col(f.name).list.head(f.max_length) for f in settings.features if f.kind == "sequence"
    ]
    return records[kept].with_columns(cut)


def with_predictions(rows: pl.DataFrame, log: SoakLog) -> pl.DataFrame:
    """With the logits that were logged first for a record, those of other windows masked."""
    tasks = [t.name for t in log.settings.tasks]
    logits = [f"fm_logit_{name}" for name in tasks]
    first = log.predictions.unique(PLACE, keep="first", maintain_order=True)
    found = rows.join(first.select(*PLACE, "fm_version", *logits), on=PLACE, how="left")
    masked = [pl.when(f"mask_{name}").then(f"fm_logit_{name}") for name in tasks]
    return found.with_columns(
        expression.alias(name) for expression, name in zip(masked, logits, strict=True)
    )


def with_label(rows: pl.DataFrame, task: Task, log: SoakLog) -> pl.DataFrame:
    """With the first label by (time, value) within the task's window, or 0."""
    given = log.labels.filter(pl.col("on_time") & (pl.col("task") == task.name))
    pairs = (
        rows.filter(f"mask_{task.name}")
        .select("impression_id", "ts_ms", "closed_ts_ms", *PLACE)
        .join(given.select("impression_id", "value", at_ms="ts_ms"), on="impression_id")
    )
    inside = pairs.filter(
        (pl.col("ts_ms") <= pl.col("at_ms")) & (pl.col("at_ms") < pl.col("closed_ts_ms"))
    )
    first = inside.sort("at_ms", "value").unique(PLACE, keep="first", maintain_order=True)
    name = f"label_{task.name}"
    found = rows.join(first.select(*PLACE, pl.col("value").alias(name)), on=PLACE, how="left")
    mine = pl.when(f"mask_{task.name}").then(pl.col(name).fill_null(0)).otherwise(0)
    return found.with_columns(mine.cast(pl.Int8).alias(name))


def in_columns(rows: pl.DataFrame, settings: Settings) -> pa.Table:
    """Rows in the columns of `examples`."""
    schema = example_schema(settings)
    return rows.select(schema.names).to_arrow().cast(schema)


def expected_dead_letters(log: SoakLog) -> set[tuple[str, int, int, bytes]]:
    """Topic, partition, offset and bytes of each message that is broken or late."""
    topics = log.settings.topics
    found = set()
    for topic, frame in (
        (topics.impressions.name, log.impressions),
        (topics.labels.name, log.labels),
    ):
        aside = frame.filter(pl.col("is_broken") | ~pl.col("on_time"))
        found |= {(topic, *row) for row in aside.select(*PLACE, "message").iter_rows()}
    return found
